package dispatcher

import (
	"github.com/prometheus/client_golang/prometheus"

	"gancho/pkg/delivery"
	"gancho/pkg/notification"
)

type metrics struct {
	attempts    *prometheus.CounterVec
	duration    *prometheus.HistogramVec
	latency     prometheus.Histogram
	inFlight    prometheus.Gauge
	ended       *prometheus.CounterVec
	parked      *prometheus.CounterVec
	conflicts   prometheus.Counter
	repaired    *prometheus.CounterVec
	panics      prometheus.Counter
	quarantined prometheus.Counter
	paused      prometheus.Gauge
	displaced   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) metrics {
	m := metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_attempts_total", Help: "HTTP requests to receivers, by outcome and reason of the failure.",
		}, []string{"outcome", "reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gancho_attempt_duration_seconds", Help: "Duration of an attempt, by outcome.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 7.5},
		}, []string{"outcome"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "gancho_first_attempt_latency_seconds",
			Help:    "Time from the broker storing an event to the start of a notification's first attempt.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
		}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gancho_attempts_in_flight", Help: "Requests open now.",
		}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_notifications_ended_total", Help: "Notifications that reached a terminal state.",
		}, []string{"state"}),
		parked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_notifications_parked_total", Help: "Notifications moved to PARKED, by reason.",
		}, []string{"reason"}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gancho_journal_conflicts_total",
			Help: "Records that came second, after a crash, a stall or a duplicate.",
		}),
		repaired: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_repairs_total", Help: "Notifications put right after a crash, by kind.",
		}, []string{"kind"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gancho_handler_panics_total", Help: "Panics while handling a notification.",
		}),
		quarantined: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gancho_notifications_quarantined_total",
			Help: "Notifications set aside because they could not be handled.",
		}),
		paused: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gancho_first_attempts_paused", Help: "While RETRIES holds more than RETRIES_MAX_BYTES: 1 when the " +
				"first attempts of the accounts that hold the most of it wait, 2 when those of all accounts do; else 0.",
		}),
		displaced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gancho_notifications_displaced_total",
			Help: "Notifications that PARKED had no room for and that were moved to RETRIES instead.",
		}),
	}
	m.attempts.WithLabelValues(notification.OutcomeDelivered, "")
	for _, o := range []string{notification.OutcomeDelivered, notification.OutcomeFailed} {
		m.duration.WithLabelValues(o)
	}
	for _, r := range delivery.Reasons() {
		m.attempts.WithLabelValues(notification.OutcomeFailed, string(r))
	}
	for _, s := range notification.States() {
		if s.Terminal() {
			m.ended.WithLabelValues(string(s))
		}
	}
	for _, r := range []string{notification.Suspended, notification.Disabled, notification.Saturated} {
		m.parked.WithLabelValues(r)
	}
	for _, k := range []string{"burnt_delivery", "exhausted", "stuck"} {
		m.repaired.WithLabelValues(k)
	}
	reg.MustRegister(m.attempts, m.duration, m.latency, m.inFlight, m.ended, m.parked, m.conflicts, m.repaired,
		m.panics, m.quarantined, m.paused, m.displaced)
	return m
}
