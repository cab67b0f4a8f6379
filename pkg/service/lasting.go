package service

import (
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// lastingEvery is how often a Lasting logger repeats a line.
const lastingEvery = time.Minute

// Lasting returns a logger for troubles that are met again and again while they last, such as a server that is down:
// a line with the same message and the same error is written once a minute, a line with another cause at once.
// The other fields do not count. All loggers made of the returned one share this memory.
func Lasting(log *zap.Logger) *zap.Logger {
	return log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
		return &lastingCore{c, &written{last: map[string]time.Time{}}}
	}))
}

type lastingCore struct {
	zapcore.Core

	written *written
}

// written remembers when each line was written last.
type written struct {
	mu   sync.Mutex
	last map[string]time.Time // by message and cause
}

// maxWritten bounds the lines that are remembered: causes may be texts that are never the same.
const maxWritten = 1000

func (w *written) due(line string, now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if last, ok := w.last[line]; ok && now.Sub(last) < lastingEvery {
		return false
	}
	if len(w.last) >= maxWritten {
		clear(w.last)
	}
	w.last[line] = now
	return true
}

// With is zapcore.Core's.
func (c *lastingCore) With(fields []zapcore.Field) zapcore.Core {
	return &lastingCore{c.Core.With(fields), c.written}
}

// Check is zapcore.Core's.
func (c *lastingCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write is zapcore.Core's.
func (c *lastingCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	line := []string{e.Message}
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			line = append(line, err.Error())
		}
	}
	if !c.written.due(strings.Join(line, "\n"), e.Time) {
		return nil
	}
	return c.Core.Write(e, fields)
}
