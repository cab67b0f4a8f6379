package service

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

type inner struct {
	Wait time.Duration `env:"INNER_WAIT" envDefault:"5s" range:"1s..10s"`
}

func (i inner) Validate() error {
	if i.Wait == 7*time.Second {
		return errors.New("INNER_WAIT: 7s is unlucky; give another")
	}
	return nil
}

type outer struct {
	Inner  inner
	Count  int             `env:"COUNT" envDefault:"3" range:"1..9"`
	Odd    int             `env:"ODD" envDefault:"1" oneof:"1 3 5" range:"1..5"`
	Share  float64         `env:"SHARE" envDefault:"0.5" range:"0..1"`
	On     bool            `env:"ON"`
	Colour string          `env:"COLOUR" envDefault:"red" oneof:"red blue"`
	Steps  []time.Duration `env:"STEPS" envDefault:"1s,2s" range:"1s..1m"`
	File   string          `env:"FILE"`
}

func (o *outer) Validate() error {
	var errs []error
	if o.Count > int(o.Inner.Wait/time.Second) {
		errs = append(errs, fmt.Errorf("COUNT: %d exceeds INNER_WAIT (%v)", o.Count, o.Inner.Wait))
	}
	if o.File == "bad" {
		errs = append(errs, fmt.Errorf("FILE: %w", errors.Join(errors.New("line 1 is bad"), errors.New("line 2 is bad"))))
	}
	return errors.Join(errs...)
}

func TestLoad(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ environ, want []string }{
		"defaults":             {nil, nil},
		"good":                 {[]string{"INNER_WAIT=9s", "COUNT=9", "ODD=5", "SHARE=1", "ON=true", "COLOUR=blue", "STEPS=1m"}, nil},
		"spaces in a list":     {[]string{"STEPS=1s, 2s , 1m"}, nil},
		"empty is the default": {[]string{"INNER_WAIT=", "COUNT=", "ODD=", "SHARE=", "ON=", "COLOUR=", "STEPS="}, nil},
		"duration":             {[]string{"INNER_WAIT=5"}, []string{`INNER_WAIT: "5" is not a duration; give a number with a unit from 1s to 10s, such as 500ms, 5s or 2h`}},
		"range":                {[]string{"INNER_WAIT=11s"}, []string{"INNER_WAIT: 11s is out of range; give a duration from 1s to 10s"}},
		"whole number":         {[]string{"COUNT=2.0"}, []string{`COUNT: "2.0" is not a number; give one from 1 to 9`}},
		"one of":               {[]string{"ODD=2"}, []string{"ODD: 2 is out of range; give one of 1, 3, 5"}},
		"not a number":         {[]string{"SHARE=NaN"}, []string{"SHARE: NaN is out of range; give a number from 0 to 1"}},
		"bool":                 {[]string{"ON=yes"}, []string{`ON: "yes" is neither true nor false`}},
		"word":                 {[]string{"COLOUR=green"}, []string{`COLOUR: "green" is unknown; give one of red, blue`}},
		"list":                 {[]string{"STEPS=1s,2"}, []string{`STEPS: "2" is not a duration; give numbers with units from 1s to 1m, separated by commas, such as 10s,1m,5m`}},
		"a part's own rule":    {[]string{"INNER_WAIT=7s"}, []string{"INNER_WAIT: 7s is unlucky; give another"}},
		"between two":          {[]string{"COUNT=6"}, []string{"COUNT: 6 exceeds INNER_WAIT (5s)"}},
		"not what follows":     {[]string{"COUNT=6", "INNER_WAIT=0s"}, []string{"INNER_WAIT: 0s is out of range; give a duration from 1s to 10s"}},
		"every line is named":  {[]string{"FILE=bad"}, []string{"FILE: line 1 is bad", "FILE: line 2 is bad"}},
		"all at once, in order": {[]string{"FILE=bad", "COLOUR=green", "COUNT=0", "ON=x"}, []string{
			"COUNT: 0 is out of range; give a number from 1 to 9", `ON: "x" is neither true nor false`,
			`COLOUR: "green" is unknown; give one of red, blue`, "FILE: line 1 is bad", "FILE: line 2 is bad",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tc.want, Load(&outer{}, tc.environ)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestWarnUnknown is row 80 of the bad inputs: a misspelt variable is named, one of another service is not.
func TestWarnUnknown(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zapcore.WarnLevel)
	warnUnknown(zap.New(core), &outer{}, []string{"INER_WAIT=1s", "REDIS_URL=redis://:secret@h", "PATH=/bin", "COUNT=2", "INNER_WAITS=1"})
	var got []string
	for _, e := range logs.All() {
		m := e.ContextMap()
		got = append(got, fmt.Sprint(m["variable"], ">", m["meant"]))
	}
	if diff := cmp.Diff(map[string]bool{"INER_WAIT>INNER_WAIT": true, "INNER_WAITS>INNER_WAIT": true}, set(got)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func set(s []string) map[string]bool {
	out := map[string]bool{}
	for _, x := range s {
		out[x] = true
	}
	return out
}

func TestCheckAddr(t *testing.T) {
	t.Parallel()
	for addr, ok := range map[string]bool{
		":9090": true, "127.0.0.1:0": true, "[::1]:65535": true, "localhost:80": true,
		"": false, "9090": false, ":": false, ":70000": false, ":-1": false, ":http": false, "::1:80": false,
	} {
		if err := CheckAddr("OPS_ADDR", addr); (err == nil) != ok {
			t.Errorf("%q: got %v", addr, err)
		}
	}
}

// TestSecretFiles: NAME_FILE names a file with the value of NAME, and no problem quotes either of them.
func TestSecretFiles(t *testing.T) {
	t.Parallel()
	type config struct {
		URL   string `env:"SOME_URL" envDefault:"nats://h" secret:"true"`
		Plain string `env:"PLAIN"`
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, tc := range map[string]struct {
		environ []string
		want    string
		problem string
	}{
		"default":        {nil, "nats://h", ""},
		"file":           {[]string{"SOME_URL_FILE=" + write("url", "nats://u:wordTail@h\r\n")}, "nats://u:wordTail@h", ""},
		"spaces stay":    {[]string{"SOME_URL_FILE=" + write("spaces", " a b ")}, " a b ", ""},
		"empty name":     {[]string{"SOME_URL=x", "SOME_URL_FILE="}, "x", ""},
		"empty variable": {[]string{"SOME_URL=", "SOME_URL_FILE=" + write("url2", "y\n")}, "y", ""},
		"both":           {[]string{"SOME_URL=wordTail", "SOME_URL_FILE=" + write("both", "z")}, "", "SOME_URL: it is set together with SOME_URL_FILE; give one of them"},
		"missing":        {[]string{"SOME_URL_FILE=/wordTail"}, "", "SOME_URL_FILE: the file cannot be read: no such file or directory; give a readable file that holds the value of SOME_URL"},
		"a folder":       {[]string{"SOME_URL_FILE=" + dir}, "", "SOME_URL_FILE: the file cannot be read: is a directory; give a readable file that holds the value of SOME_URL"},
		"empty":          {[]string{"SOME_URL_FILE=" + write("empty", "\n")}, "", "SOME_URL_FILE: the file is empty; give a readable file that holds the value of SOME_URL"},
		"large":          {[]string{"SOME_URL_FILE=" + write("large", strings.Repeat("wordTail", 10_000))}, "", "SOME_URL_FILE: the file is larger than 64 KiB; give a readable file that holds the value of SOME_URL"},
		"not a secret":   {[]string{"PLAIN_FILE=/wordTail"}, "nats://h", ""},
	} {
		var cfg config
		var want []string
		if tc.problem != "" {
			want = []string{tc.problem}
		}
		if diff := cmp.Diff(want, Load(&cfg, tc.environ)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if tc.problem == "" && cfg.URL != tc.want {
			t.Errorf("%s: %q, want %q", name, cfg.URL, tc.want)
		}
	}
}
