package service

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// TestLasting: a trouble is logged when it begins, when its cause changes, and once a minute.
func TestLasting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.InfoLevel)
		log := Lasting(zap.New(core))
		full, away := errors.New("full"), errors.New("away")
		for range 121 {
			log.Warn("not stored", zap.Error(full), zap.String("id", time.Now().String()))
			log.With(zap.String("more", "x")).Warn("not stored", zap.Error(full))
			log.Debug("not stored", zap.Error(full))
			time.Sleep(time.Second)
		}
		if n := logs.Len(); n != 3 {
			t.Errorf("%d lines in two minutes, want 3", n)
		}
		log.Warn("not stored", zap.Error(away))
		log.Warn("not read", zap.Error(away))
		if n := logs.Len(); n != 5 {
			t.Errorf("%d lines after another cause and another trouble, want 5", n)
		}
	})
}

// TestCollectorAway: the library's errors differ from batch to batch, their cause does not.
func TestCollectorAway(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zapcore.WarnLevel)
	log := Lasting(zap.New(core))
	for batch := range 24 {
		spansNotSent(log, fmt.Errorf("traces export: batch %d: %w", batch, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}))
	}
	if logs.Len() != 1 || logs.All()[0].ContextMap()["error"] != "connection refused: nothing listens there" {
		t.Errorf("%d lines: %v; want one with the cause", logs.Len(), logs.All())
	}
}
