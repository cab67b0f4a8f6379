package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

func (completionCmd) Help() string {
	return `Examples:

	source <(gancho completion bash)
	source <(gancho completion zsh)
	gancho completion fish > ~/.config/fish/completions/gancho.fish`
}

func (c completionCmd) Run(a *app) error {
	places := places(a.kong.Model.Node, "", "")
	write := map[string]func(io.Writer, []place) error{"bash": bash, "zsh": zsh, "fish": fish}[c.Shell]
	return write(a.Stdout, places)
}

// place is where a command line can stand: after the words of path, separated and begun by slashes.
type place struct {
	path, help string
	commands   []candidate
	flags      []candidate
	values     []string // of the first argument
	file       bool     // the first argument is one
}

// candidate is a word that can come next. A flag with values needs one of them.
type candidate struct {
	word, short, help string
	value             bool // a flag that takes a value
	values            []string
}

// places lists node and everything below it.
func places(node *kong.Node, path, help string) []place {
	p := place{path: path, help: help}
	for _, group := range node.AllFlags(true) {
		for _, f := range group {
			c := candidate{word: "--" + f.Name, help: oneLine(f.Help), value: !f.IsBool()}
			if f.Short != 0 {
				c.short = "-" + string(f.Short)
			}
			if f.Enum != "" {
				c.values = strings.Split(f.Enum, ",")
			}
			p.flags = append(p.flags, c)
		}
	}
	if len(node.Positional) > 0 {
		first := node.Positional[0]
		if p.file = first.Name == "file"; first.Enum != "" {
			p.values = strings.Split(first.Enum, ",")
		}
	}
	var below []place
	for _, child := range node.Children {
		if child.Hidden {
			continue
		}
		p.commands = append(p.commands, candidate{word: child.Name, help: oneLine(child.Help)})
		below = append(below, places(child, path+"/"+child.Name, child.Help)...)
	}
	return append([]place{p}, below...)
}

// oneLine makes a help text fit between single quotes of any shell.
func oneLine(s string) string {
	return strings.NewReplacer("\n", " ", "'", "", ":", " -", `\`, "").Replace(strings.TrimSuffix(s, "."))
}

func words(all []candidate) string {
	var out []string
	for _, c := range all {
		out = append(out, c.word)
		if c.short != "" {
			out = append(out, c.short)
		}
	}
	return strings.Join(out, " ")
}

// known is the pattern of all paths, for a case of sh.
func known(all []place) string {
	var out []string
	for _, p := range all[1:] {
		out = append(out, p.path)
	}
	return strings.Join(out, "|")
}

func bash(w io.Writer, all []place) error {
	var b strings.Builder
	b.WriteString("# gancho's commands for bash: source <(gancho completion bash)\n_gancho() {\n" +
		"\tlocal cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} at=\"\" words=\"\" i\n" +
		"\tfor ((i = 1; i < COMP_CWORD; i++)); do\n\t\tcase \"$at/${COMP_WORDS[i]}\" in\n")
	fmt.Fprintf(&b, "\t\t%s) at=\"$at/${COMP_WORDS[i]}\" ;;\n\t\tesac\n\tdone\n", known(all))
	afterFlags(&b, all, `COMPREPLY=($(compgen -W "%s" -- "$cur"))`, "COMPREPLY=()")
	b.WriteString("\tesac\n\tcase \"$at\" in\n")
	for _, p := range all {
		fmt.Fprintf(&b, "\t\"%s\") words=\"%s\" ;;\n", p.path, join(words(p.commands), strings.Join(p.values, " ")))
	}
	b.WriteString("\tesac\n\tif [[ $cur == -* ]]; then\n\t\tcase \"$at\" in\n")
	for _, p := range all {
		fmt.Fprintf(&b, "\t\t\"%s\") words=\"%s\" ;;\n", p.path, words(p.flags))
	}
	b.WriteString("\t\tesac\n\tfi\n\tCOMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}\ncomplete " +
		"-o default -F _gancho gancho\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// afterFlags begins a case over the place and the word before. It completes a flag's value with known, if the values
// are known, else with other.
func afterFlags(b *strings.Builder, all []place, known, other string) {
	b.WriteString("\tcase \"$at $prev\" in\n")
	var others []string
	for _, p := range all {
		for _, f := range p.flags {
			switch {
			case f.values != nil:
				fmt.Fprintf(b, "\t%s) "+known+"; return ;;\n", quoted(p.path, f), strings.Join(f.values, " "))
			case f.value:
				others = append(others, quoted(p.path, f))
			}
		}
	}
	fmt.Fprintf(b, "\t%s) %s; return ;;\n", strings.Join(others, "|"), other)
}

func join(parts ...string) string { return strings.TrimSpace(strings.Join(parts, " ")) }

// quoted is the pattern of a path and one of its flags.
func quoted(path string, f candidate) string {
	out := `"` + path + " " + f.word + `"`
	if f.short != "" {
		out += `|"` + path + " " + f.short + `"`
	}
	return out
}

func zsh(w io.Writer, all []place) error {
	var b strings.Builder
	b.WriteString("#compdef gancho\n# gancho's commands for zsh: source <(gancho completion zsh)\n_gancho() {\n" +
		"\tlocal at=\"\" word prev=${words[CURRENT-1]}\n\tlocal -a found\n\tfor word in ${words[2,CURRENT-1]}; " +
		"do\n\t\tcase \"$at/$word\" in\n")
	fmt.Fprintf(&b, "\t\t%s) at=\"$at/$word\" ;;\n\t\tesac\n\tdone\n", known(all))
	afterFlags(&b, all, "compadd -- %s", "_files")
	b.WriteString("\tesac\n\tcase \"$at\" in\n")
	for _, p := range all {
		fmt.Fprintf(&b, "\t\"%s\")\n\t\tfound=(%s)\n\t\t[[ $PREFIX == -* ]] && found=(%s)\n\t\t;;\n", p.path,
			described(p.commands, p.values), described(p.flags, nil))
	}
	b.WriteString("\tesac\n\tif (( $#found )); then\n\t\t_describe gancho " +
		"found\n\telse\n\t\t_files\n\tfi\n}\ncompdef _gancho gancho\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// described lists words with their help as _describe takes them.
func described(all []candidate, values []string) string {
	var out []string
	for _, c := range all {
		out = append(out, "'"+c.word+":"+c.help+"'")
		if c.short != "" {
			out = append(out, "'"+c.short+":"+c.help+"'")
		}
	}
	for _, v := range values {
		out = append(out, "'"+v+"'")
	}
	return strings.Join(out, " ")
}

func fish(w io.Writer, all []place) error {
	var b strings.Builder
	b.WriteString("# gancho's commands for fish: gancho completion fish > " +
		"~/.config/fish/completions/gancho.fish\nfunction __gancho_at\n" +
		"\tset -l at ''\n\tfor word in (commandline -opc)[2..-1]\n\t\tswitch \"$at/$word\"\n")
	fmt.Fprintf(&b, "\t\t\tcase %s\n\t\t\t\tset at \"$at/$word\"\n\t\tend\n\tend\n\ttest \"$at\" = \"$argv[1]\"\nend\n",
		strings.ReplaceAll(known(all), "|", " "))
	for _, p := range all {
		at := "complete -c gancho -n \"__gancho_at '" + p.path + "'\""
		for _, c := range p.commands {
			fmt.Fprintf(&b, "%s -f -a %s -d '%s'\n", at, c.word, c.help)
		}
		switch {
		case p.values != nil:
			fmt.Fprintf(&b, "%s -f -a '%s'\n", at, strings.Join(p.values, " "))
		case !p.file:
			fmt.Fprintf(&b, "%s -f\n", at)
		}
		for _, f := range p.flags {
			line := at + " -l " + strings.TrimPrefix(f.word, "--")
			if f.short != "" {
				line += " -s " + strings.TrimPrefix(f.short, "-")
			}
			switch {
			case f.values != nil:
				line += " -x -a '" + strings.Join(f.values, " ") + "'"
			case f.value:
				line += " -r"
			}
			fmt.Fprintf(&b, "%s -d '%s'\n", line, f.help)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
