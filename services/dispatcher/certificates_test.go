package dispatcher

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"gancho/pkg/delivery"
	"gancho/pkg/lane"
	"gancho/pkg/notification"
	"gancho/pkg/webhook"
)

const day = 24 * time.Hour

// certificateRig sees certificates of one webhook's attempts.
type certificateRig struct {
	*certificates

	t       *testing.T
	metrics *prometheus.Registry
	logs    *observer.ObservedLogs
}

func newCertificateRig(t *testing.T) *certificateRig {
	core, logs := observer.New(zap.InfoLevel)
	metrics := prometheus.NewRegistry()
	return &certificateRig{newReceiverCertificates(zap.New(core), metrics), t, metrics, logs}
}

// at sees a certificate of 90 days that ends in left.
func (r *certificateRig) at(host string, left time.Duration, handshake bool) {
	until := time.Now().Add(left)
	r.saw(&lane.Delivery{Notification: notification.Notification{Account: "acme", WebhookID: "w"}}, host, host,
		delivery.Certificate{From: until.Add(-90 * day), Until: until, New: handshake})
}

// want compares the gauges and the number of lines written so far.
func (r *certificateRig) want(hosts int, first time.Time, lines int) {
	r.t.Helper()
	r.sweep()
	end := 0.0
	if !first.IsZero() {
		end = float64(first.Unix())
	}
	if got := gauge(r.t, r.metrics, "gancho_receiver_certificates_ending"); got != float64(hosts) {
		r.t.Errorf("hosts: got %v, want %d", got, hosts)
	}
	if got := gauge(r.t, r.metrics, "gancho_receiver_certificate_first_end_timestamp_seconds"); got != end {
		r.t.Errorf("first end: got %v, want %v", got, end)
	}
	if got := r.logs.Len(); got != lines {
		r.t.Errorf("lines: got %d, want %d", got, lines)
	}
}

// gauge returns the value of a gauge without labels, -1 when there is none.
func gauge(t *testing.T, metrics *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return -1
}

func TestCertificateEndsWithin14Days(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newCertificateRig(t)
		r.want(0, time.Time{}, 0)
		r.at("long.test", 14*day+time.Second, true)
		r.want(0, time.Time{}, 0)
		r.at("soon.test", 14*day, true)
		r.at("ended.test", -time.Hour, true)
		r.want(2, time.Now().Add(-time.Hour), 2)
		line := r.logs.All()[0].ContextMap()
		for name, want := range map[string]string{"url_host": "soon.test", "account_id": "acme", "webhook_id": "w"} {
			if got := line[name]; got != want {
				t.Errorf("%s: got %v, want %v", name, got, want)
			}
		}
		if ends, ok := line["certificate_ends_at"].(time.Time); !ok || !ends.Equal(time.Now().Add(14*day)) {
			t.Errorf("certificate_ends_at: got %v", line["certificate_ends_at"])
		}
	})
}

func TestCertificateIsWarnedOfOnceADay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newCertificateRig(t)
		end := time.Now().Add(10 * day)
		for hour := range 49 { // a line in the hours 0, 24 and 48
			r.at("soon.test", time.Until(end), false)
			if r.want(1, end, 1+hour/24); t.Failed() {
				t.Fatalf("in hour %d", hour)
			}
			time.Sleep(time.Hour)
		}
	})
}

func TestRenewedCertificateIsForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newCertificateRig(t)
		end := time.Now().Add(10 * day)
		r.at("a.test", time.Until(end), true)
		r.want(1, end, 1)
		r.at("a.test", 80*day, true)
		r.want(0, time.Time{}, 1)
		for range 49 { // a connection from before may be kept for days
			r.at("a.test", time.Until(end), false)
			r.want(0, time.Time{}, 1)
			time.Sleep(time.Hour)
		}
		r.at("a.test", time.Until(end), true) // of a machine that was left out of the renewal
		r.want(1, end, 2)
		r.at("a.test", 80*day, true)
		time.Sleep(day + time.Second)
		r.want(0, time.Time{}, 2)
		if n := len(r.hosts); n != 0 {
			t.Errorf("%d hosts are remembered", n)
		}
	})
}

func TestHostWithoutContactIsForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newCertificateRig(t)
		end := time.Now().Add(5 * day)
		r.at("a.test", time.Until(end), true)
		time.Sleep(day)
		r.want(1, end, 1)
		r.at("a.test", time.Until(end), false) // a contact without a handshake, and the next day's line
		time.Sleep(day)
		r.want(1, end, 2)
		time.Sleep(time.Second)
		r.want(0, time.Time{}, 2)
		if n := len(r.hosts); n != 0 {
			t.Errorf("%d hosts are remembered", n)
		}
	})
}

func TestCertificatesAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newCertificateRig(t)
		end := time.Now().Add(day)
		for i := range certificateHosts + 1 {
			r.at(strconv.Itoa(i)+".test", day, true)
		}
		r.want(certificateHosts, end, certificateHosts)
	})
}

// TestEndedCertificateIsTold runs a dispatcher against a receiver whose certificate has ended.
func TestEndedCertificateIsTold(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	rc := httptest.NewUnstartedServer(http.NotFoundHandler())
	rc.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	rc.Config.ErrorLog = log.New(io.Discard, "", 0)
	rc.StartTLS()
	t.Cleanup(rc.Close)
	core, logs := observer.New(zap.InfoLevel)
	r := newRig(t, nil)
	r.log = zap.New(core)
	w := r.webhook(rc.URL, nil)
	r.start()
	r.state(r.notify(w, 1), notification.PermanentlyFailed)
	r.until("the host is counted", func() bool { return gauge(t, r.metrics, "gancho_receiver_certificates_ending") == 1 })
	if end := gauge(t, r.metrics, "gancho_receiver_certificate_first_end_timestamp_seconds"); end != float64(template.NotAfter.Unix()) {
		t.Errorf("first end: got %v", end)
	}
	if n := logs.FilterMessage("certificate ends").FilterField(zap.String("url_host", webhook.URLHost(w.URL))).Len(); n != 1 {
		t.Errorf("%d lines tell of it", n)
	}
}
