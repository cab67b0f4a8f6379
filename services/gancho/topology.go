package gancho

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"gancho/pkg/bus"
	"gancho/pkg/bytesize"
	"gancho/pkg/service"
)

// Topology shows streams, buckets and consumers as they are and as the services would create them with this
// environment. With apply it creates the streams and buckets that are missing and loosens limits; what would
// drop or refuse messages is never done. The exit code is 1 while something is missing or differs, consumers
// left aside: their services make them.
func Topology(environ []string, apply bool, stdout, stderr io.Writer) int {
	return withBroker(environ, stderr, func(ctx context.Context, b *bus.Bus, cfg brokerConfig) (int, error) {
		if apply {
			done, err := b.Apply(ctx, cfg.Limits)
			for _, line := range done {
				fmt.Fprintln(stdout, line)
			}
			if err != nil {
				return 0, err
			}
			if len(done) == 0 {
				fmt.Fprintln(stdout, "nothing to create or loosen")
			}
			fmt.Fprintln(stdout)
		}
		parts, err := b.Topology(ctx, cfg.Limits)
		if err != nil {
			return 0, err
		}
		return showTopology(parts, stdout)
	})
}

func showTopology(parts []bus.Part, stdout io.Writer) (int, error) {
	code := service.ExitOK
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KIND\tNAME\tOWNER\tMESSAGES\tBYTES\tSTATE")
	var left []string
	for _, p := range parts {
		state, owner, bytes := "ok", string(p.Owner), bytesize.Text(p.Bytes)
		name := p.Name
		if p.Kind == bus.KindConsumer {
			name, bytes = p.Stream+" > "+p.Name, ""
		}
		switch {
		case !p.Exists && p.Kind == bus.KindConsumer:
			state = "its service makes it when it starts"
		case !p.Exists:
			state, code = "missing; --apply creates it", service.ExitError
		}
		for i, c := range p.Changes {
			code = service.ExitError
			if i == 0 {
				state = ""
			} else {
				state += ", "
			}
			state += fmt.Sprintf("%s %s -> %s", c.Field, c.Have, c.Want)
			if c.Loosens {
				state += " (--apply)"
			} else {
				state += " (not applied)"
				left = append(left, fmt.Sprintf("%s %s: %s is %s, expected %s", p.Kind, p.Name, c.Field, c.Have,
					c.Want))
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", p.Kind, name, owner, p.Messages, bytes, state)
	}
	if err := w.Flush(); err != nil {
		return code, err
	}
	if len(left) > 0 {
		fmt.Fprintln(stdout, "\nNot applied, because it could drop or refuse messages. Change the environment back, "+
			"or the stream by hand (nats stream edit):")
		for _, l := range left {
			fmt.Fprintln(stdout, "  "+l)
		}
	}
	return code, nil
}
