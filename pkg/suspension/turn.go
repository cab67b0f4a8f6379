package suspension

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/redis/go-redis/v9"
)

const (
	// pipelined is the most commands sent in one go: Redis answers so many well within opTimeout.
	pipelined = 256
	// conflicts is how often a turn is decided again because another store changed its URL in between. Each conflict
	// is another store's progress.
	conflicts = 100
)

// setLua writes a URL's window and suspension if both are as they were read, else it returns them. Together with the
// read before it, a turn is atomic for any number of stores.
//
//go:embed set.lua
var setLua string

// A turn is one decision about one URL: read its state, decide, write. decide may run several times, each time with
// the newest state; it must overwrite the results of the time before.
type turn struct {
	key    Key
	host   string
	base   uint64 // see machine.base
	decide func(*machine)

	m            *machine
	window, flag string // as Redis holds them, "" for none

	// Results of decide that Observe and the guard look at.
	steps     []Transition
	candidate bool
}

// decision is the result of the turn.
func (t *turn) decision() Decision {
	return Decision{Key: t.key, Flag: t.m.suspension(), Transitions: t.steps}
}

func (t *turn) tag() string       { return "{" + t.key.Account + ":" + t.key.URLKey + "}" }
func (t *turn) windowKey() string { return windowPrefix + t.tag() }
func (t *turn) flagKey() string   { return flagPrefix + t.tag() }

func windowKey(k Key) string { return (&turn{key: k}).windowKey() }
func flagKey(k Key) string   { return (&turn{key: k}).flagKey() }

// run makes the turns, many in one round trip. extra queues further commands, which go with the first read.
func (s *Store) run(ctx context.Context, turns []*turn, extra func(redis.Pipeliner)) error {
	for {
		n := min(len(turns), pipelined)
		if n == 0 && extra == nil {
			return nil
		}
		if err := s.read(ctx, turns[:n], extra); err != nil {
			return err
		}
		for open, tries := turns[:n], 0; len(open) > 0; tries++ {
			if tries == conflicts {
				return fmt.Errorf("suspension of %s: changed by others %d times in a row; is a program in a loop?",
					open[0].key, conflicts)
			}
			for _, t := range open {
				t.load(s.limits)
				t.decide(t.m)
			}
			var err error
			if open, err = s.write(ctx, open); err != nil {
				return err
			}
		}
		turns, extra = turns[n:], nil
	}
}

// load makes the machine of what Redis holds. A record that is not one counts as none: the next write replaces it, and
// a suspension comes back from the bucket.
func (t *turn) load(l limits) {
	t.m = &machine{key: t.key, host: t.host, limits: l, expires: math.MaxInt64, base: t.base}
	t.steps, t.candidate = nil, false
	if t.window != "" {
		if w := new(window); json.Unmarshal([]byte(t.window), w) == nil {
			t.m.win = w
		}
	}
	if t.flag != "" {
		if r, err := decodeRecord(t.flag); err == nil {
			t.m.flag = r
		}
	}
	t.m.read = t.m.flag
}

func decodeRecord(body string) (*record, error) {
	r := new(record)
	if err := json.Unmarshal([]byte(body), r); err != nil {
		return nil, err
	}
	if r.State != Suspended && r.State != Probing {
		return nil, errors.New("it has no state")
	}
	return r, nil
}

func (s *Store) read(ctx context.Context, turns []*turn, extra func(redis.Pipeliner)) error {
	pipe := s.client.Pipeline()
	if extra != nil {
		extra(pipe)
	}
	states := make([]*redis.SliceCmd, len(turns))
	for i, t := range turns {
		states[i] = pipe.MGet(ctx, t.windowKey(), t.flagKey())
	}
	cmds, err := pipe.Exec(ctx)
	if err := firstError(cmds, err); err != nil {
		return err
	}
	for i, t := range turns {
		t.window, _ = states[i].Val()[0].(string)
		t.flag, _ = states[i].Val()[1].(string)
	}
	return nil
}

// write stores the changes and returns the turns whose URL another store changed in between.
func (s *Store) write(ctx context.Context, turns []*turn) ([]*turn, error) {
	type change struct {
		t    *turn
		args []any
		cmd  *redis.Cmd
	}
	var changes []*change
	for _, t := range turns {
		args, err := t.arguments()
		if err != nil {
			return nil, err
		}
		if args != nil {
			changes = append(changes, &change{t: t, args: args})
		}
	}
	if len(changes) == 0 {
		return nil, nil
	}
	send := func(changes []*change) error {
		pipe := s.client.Pipeline()
		for _, c := range changes {
			c.cmd = s.set.EvalSha(ctx, pipe, []string{c.t.windowKey(), c.t.flagKey()}, c.args...)
		}
		cmds, err := pipe.Exec(ctx)
		for _, cmd := range cmds {
			if redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") {
				err = nil // the others are looked at one by one
			}
		}
		if err == nil || errors.Is(err, redis.Nil) {
			return nil
		}
		return firstError(cmds, err)
	}
	if err := send(changes); err != nil {
		return nil, err
	}
	unknown := slices.DeleteFunc(slices.Clone(changes), func(c *change) bool {
		return !redis.HasErrorPrefix(c.cmd.Err(), "NOSCRIPT")
	})
	if len(unknown) > 0 {
		// not in the pipeline: Load takes the hash from the answer
		if err := s.set.Load(ctx, s.client).Err(); err != nil {
			return nil, fmt.Errorf("load redis script: %w", err)
		}
		if err := send(unknown); err != nil {
			return nil, err
		}
	}
	var conflicting []*turn
	for _, c := range changes {
		current, err := c.cmd.StringSlice()
		if err != nil {
			return nil, fmt.Errorf("store suspension of %s: %w", c.t.key, err)
		}
		if len(current) == 2 {
			c.t.window, c.t.flag = current[0], current[1]
			conflicting = append(conflicting, c.t)
		}
	}
	return conflicting, nil
}

// arguments of the script set; nil when there is nothing to write.
func (t *turn) arguments() ([]any, error) {
	window, ttl, flag := "", "", "="
	if t.m.saved {
		body, err := json.Marshal(t.m.win)
		if err != nil {
			return nil, fmt.Errorf("encode window of %s: %w", t.key, err)
		}
		window, ttl = string(body), strconv.FormatInt(t.m.ttl, 10)
	}
	if t.m.flag != t.m.read {
		flag = ""
		if t.m.flag != nil {
			body, err := json.Marshal(t.m.flag)
			if err != nil {
				return nil, fmt.Errorf("encode suspension of %s: %w", t.key, err)
			}
			flag = string(body)
		}
	}
	if ttl == "" && flag == "=" {
		return nil, nil
	}
	return []any{t.window, t.flag, window, ttl, flag}, nil
}

// firstError returns what went wrong in a pipeline, if anything did.
func firstError(cmds []redis.Cmder, err error) error {
	for _, cmd := range cmds {
		if err := cmd.Err(); err != nil && !errors.Is(err, redis.Nil) {
			return fmt.Errorf("redis %s: %w", cmd.Name(), err)
		}
	}
	if err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("redis: %w", err)
	}
	return nil
}
