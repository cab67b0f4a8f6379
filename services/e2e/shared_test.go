package e2e

import (
	"net/http"
	"testing"
	"time"
)

// turn is the test that uses a system now.
type turn struct{ *testing.T }

// guest is a test on a system that it shares with others.
type guest struct {
	name string
	run  func(t *testing.T, s *system)
}

// share starts one system and runs guests on it, one after the other: the start of a system takes as long as many a
// test. Each finds every service running, one dispatcher, and none of the webhooks before it. The first failure ends
// it, as a broken system fails the others too.
func share(t *testing.T, s *system, guests ...guest) {
	t.Helper()
	for _, g := range guests {
		ok := t.Run(g.name, func(t *testing.T) {
			s.t, s.turn.T = t, t
			s.tidy()
			g.run(t, s)
		})
		if s.t, s.turn.T = t, t; !ok {
			return
		}
	}
}

// tidy restarts ended services, ends added dispatchers, and deletes all webhooks.
func (s *system) tidy() {
	s.t.Helper()
	for _, d := range s.Dispatchers[1:] {
		d.Kill()
	}
	s.Dispatchers = s.Dispatchers[:1]
	for _, p := range s.Services() {
		if !p.Running() {
			p.Start()
		}
	}
	s.WaitReady()
	var hooks []hook
	if status := s.call(http.MethodGet, "/crm/v2/webhooks?page[size]=200", nil, &hooks); status != http.StatusOK {
		s.t.Fatalf("list the webhooks: status %d", status)
	}
	for _, h := range hooks {
		if status := s.call(http.MethodDelete, "/crm/v2/webhooks/"+h.ID, nil, nil); status != http.StatusNoContent {
			s.t.Fatalf("delete a webhook: status %d", status)
		}
		s.registered.Store(time.Now().UnixNano()) // a deletion, too, counts after a while
	}
}

// TestKills kills processes under load.
func TestKills(t *testing.T) {
	t.Parallel()
	share(t, newSystem(t, "ATTEMPT_TIMEOUT=500ms"), // hanging attempts must not make the test long
		guest{"BooksBalance", testBooksBalanceThroughKills}, // it counts all that the system ever did
		guest{"Dispatcher", testKillDispatcherUnderFailingNotifications},
		guest{"Broker", testKillBrokerUnderLoad},
	)
}

// TestOrdinary is what happens to a system with ordinary settings.
func TestOrdinary(t *testing.T) {
	t.Parallel()
	share(t, newSystem(t),
		guest{"Scale", testScale}, // it counts all that the system ever did
		guest{"QueriesOnPrometheus", testQueriesOnPrometheus},
		guest{"DeliversByteForByte", testDeliversByteForByte},
		guest{"KillPublisherInFanOut", testKillPublisherInFanOut},
		guest{"StopUnderLoad", testStopUnderLoad},
		guest{"MaxPerMinute", testMaxPerMinute},
		guest{"DeletedStream", testDeletedStream},
	)
}

// TestSuspensions is about suspensions that end soon.
func TestSuspensions(t *testing.T) {
	t.Parallel()
	share(t, newSystem(t, append(quickly, "ATTEMPT_TIMEOUT=2s", "SUSPENSION_DURATION=2s", "SUSPENSION_MAX_DURATION=3s")...),
		guest{"IsSilentAndRecovers", testSuspendedURLIsSilentAndRecovers},
		guest{"ReleaseByThreeDispatchers", testReleaseByThreeDispatchers},
		guest{"RedisLost", testRedisLostDuringSuspension},
		guest{"FrozenProbingDispatcher", testFrozenProbingDispatcher},
	)
}

// TestSuspensionsInOrder is about suspensions where a URL gets one request at a time.
func TestSuspensionsInOrder(t *testing.T) {
	t.Parallel()
	share(t, newSystem(t, append(quickly, "MAX_IN_FLIGHT_PER_URL=1")...),
		guest{"ParkedArriveOldestFirst", testParkedArriveOldestFirst},
		guest{"KillMonitorAtEachStep", testKillMonitorAtEachStep},
		guest{"ByHand", testByHand},
	)
}

// TestSuspensionsForLong is about suspensions that outlast the test, the people who learn of them, and pages of the
// console.
func TestSuspensionsForLong(t *testing.T) {
	t.Parallel()
	site := newCRM(t)
	share(t, newSystem(t, "RETRY_DELAYS=300ms,300ms,300ms,300ms,300ms",
		"SUSPENSION_WINDOW=10m", "SUSPENSION_MIN_FAILURES=8", "SUSPENSION_MIN_SPAN=0s", "SUSPENSION_DURATION=1h", "SUSPENSION_MAX_DURATION=1h",
		"CONSOLE_FRAME_ANCESTORS="+site.url, "TRUSTED_PROXIES=127.0.0.1"),
		guest{"TwoMonitorsDecideOnce", testTwoMonitorsDecideOnce},
		guest{"NoticeReachesItsURL", testNoticeReachesItsURL},
		guest{"ConsoleInABrowser", testConsoleInABrowser},
		guest{"PortalInAFrame", func(t *testing.T, s *system) { testPortalInAFrame(t, s, site) }},
	)
}
