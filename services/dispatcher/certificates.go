package dispatcher

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gancho/pkg/delivery"
	"gancho/pkg/lane"
)

const (
	// certificateMemory is how long a host is remembered after the last attempt that met a certificate that ends
	// soon.
	certificateMemory = 24 * time.Hour
	// certificateHosts is how many hosts are remembered at most; further ones are left out until some are forgotten.
	certificateHosts = 10_000
)

// certificates remembers the hosts of receivers whose certificate ends soon or has ended, or the webhooks whose client
// certificate does, for two gauges and one line of the log for each and day. The latest full handshake decides: a
// connection kept from before a renewal does not bring the host back. It is safe for concurrent use.
type certificates struct {
	log     *zap.Logger
	message string // of the line
	ending  prometheus.Gauge
	first   prometheus.Gauge

	mu    sync.Mutex
	hosts map[string]*certificate // by host, or by the webhook's key
}

type certificate struct {
	until  time.Time
	ending bool      // false: it was renewed
	seen   time.Time // when an attempt last met one that ends soon, on a connection from before the renewal too
	warned time.Time // zero: not yet
}

func newReceiverCertificates(log *zap.Logger, reg prometheus.Registerer) *certificates {
	c := &certificates{
		log: log, message: "certificate ends", hosts: map[string]*certificate{},
		ending: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gancho_receiver_certificates_ending", Help: "Hosts of receivers whose certificate has ended or ends within 14 days (within a third of its validity where that is less).",
		}),
		first: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gancho_receiver_certificate_first_end_timestamp_seconds", Help: "When the first of the certificates in gancho_receiver_certificates_ending ends, as Unix time; 0: there is none.",
		}),
	}
	reg.MustRegister(c.ending, c.first)
	return c
}

func newClientCertificates(log *zap.Logger, reg prometheus.Registerer) *certificates {
	c := &certificates{
		log: log, message: "client certificate ends", hosts: map[string]*certificate{},
		ending: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gancho_client_certificates_ending", Help: "Webhooks whose client certificate (auth of type mtls) has ended or ends within 14 days (within a third of its validity where that is less).",
		}),
		first: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gancho_client_certificate_first_end_timestamp_seconds", Help: "When the first of the certificates in gancho_client_certificates_ending ends, as Unix time; 0: there is none.",
		}),
	}
	reg.MustRegister(c.ending, c.first)
	return c
}

// saw takes over the facts about a certificate from an attempt at m, for the host. key is that host, or the webhook's.
func (c *certificates) saw(m *lane.Delivery, key, host string, o delivery.Certificate) {
	now := time.Now()
	ending := o.EndsSoon(now)
	if !ending && !o.New || !c.note(key, o, ending, now) {
		return
	}
	c.log.Warn(c.message, zap.String("url_host", host), zap.String("account_id", m.Account), zap.String("webhook_id", m.WebhookID),
		zap.Time("certificate_ends_at", o.Until))
}

// note reports whether the host is to be warned of.
func (c *certificates) note(host string, o delivery.Certificate, ending bool, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.hosts[host]
	switch {
	case h == nil && (!ending || len(c.hosts) >= certificateHosts):
		return false
	case h == nil:
		h = &certificate{until: o.Until, ending: true}
		c.hosts[host] = h
	case o.New:
		h.until, h.ending = o.Until, ending
	}
	if !ending {
		return false
	}
	h.seen = now
	if !h.ending || !h.warned.IsZero() && now.Sub(h.warned) < 24*time.Hour {
		return false
	}
	h.warned = now
	return true
}

// sweep forgets hosts and sets the gauges.
func (c *certificates) sweep() {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	ending, first := 0, time.Time{}
	for host, h := range c.hosts {
		switch {
		case now.Sub(h.seen) > certificateMemory:
			delete(c.hosts, host)
		case h.ending:
			ending++
			if first.IsZero() || h.until.Before(first) {
				first = h.until
			}
		}
	}
	c.ending.Set(float64(ending))
	if first.IsZero() {
		c.first.Set(0)
	} else {
		c.first.Set(float64(first.Unix()))
	}
}
