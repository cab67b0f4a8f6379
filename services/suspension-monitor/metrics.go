package monitor

import (
	"github.com/prometheus/client_golang/prometheus"

	"gancho/pkg/books"
	"gancho/pkg/suspension"
)

type metrics struct {
	transitions *prometheus.CounterVec
	suspended   prometheus.Gauge
	candidates  prometheus.Gauge
	holding     prometheus.Gauge
	redis       prometheus.Histogram
	redisErrors prometheus.Counter
	repaired    *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) metrics {
	m := metrics{
		transitions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_suspension_transitions_total", Help: "Steps of suspensions, by event.",
		}, []string{"event"}),
		suspended: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gancho_suspended_urls", Help: "URLs that are suspended now, by hand or automatically.",
		}),
		candidates: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gancho_suspension_candidates", Help: "URLs that failed all the time " +
				"in the last 15 minutes, suspended or not.",
		}),
		holding: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gancho_suspension_holding", Help: "1 while nothing is suspended automatically because too many " +
				"URLs fail at once: the fault is probably on our side.",
		}),
		redis: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "gancho_redis_seconds", Help: "Time of one exchange with Redis.", Buckets: []float64{
				.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1,
			},
		}),
		redisErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gancho_redis_errors_total", Help: "Exchanges with Redis that failed.",
		}),
		repaired: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gancho_repairs_total", Help: "Notifications put right after a crash, by kind.",
		}, []string{"kind"}),
	}
	for _, e := range []suspension.Event{
		suspension.EventAtRisk, suspension.EventSuspended, suspension.EventProbing,
		suspension.EventResumed,
	} {
		m.transitions.WithLabelValues(string(e))
	}
	for _, k := range books.Kinds() {
		m.repaired.WithLabelValues(k)
	}
	reg.MustRegister(m.transitions, m.suspended, m.candidates, m.holding, m.redis, m.redisErrors, m.repaired)
	return m
}
