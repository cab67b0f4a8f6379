package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gancho/services/internal/testsystem"
)

// report sums up the requests since the last reset.
type report struct {
	Requests int     `json:"requests"`
	Distinct int     `json:"distinct"` // without those that came again
	Newest   int64   `json:"newest"`   // Unix nanoseconds, when the last one came that had not come before
	Pause    int64   `json:"pause"`    // the longest time between two requests, in nanoseconds
	First    int64   `json:"first"`    // Unix nanoseconds
	Last     int64   `json:"last"`
	P50      float64 `json:"p50"` // ms from publishing the event to its request
	P99      float64 `json:"p99"`
	Calm     int     `json:"calm"`     // requests that came while the machine was not held up
	CalmP99  float64 `json:"calm_p99"` // ms, of those
}

// arrival is a request: its path, and when its event was published and when it came, in Unix nanoseconds.
type arrival struct {
	path       string
	sent, came int64
}

// sum counts the requests, which are in order, once each.
func (r *report) sum(all []arrival) {
	type delivery struct {
		path string
		sent int64
	}
	seen := make(map[delivery]bool, len(all))
	r.Requests = len(all)
	for i, a := range all {
		if i > 0 {
			r.Pause = max(r.Pause, a.came-all[i-1].came)
		}
		if d := (delivery{a.path, a.sent}); !seen[d] {
			seen[d], r.Newest = true, a.came
		}
	}
	r.Distinct = len(seen)
}

// quantiles are the median and the 99th percentile of the time from publishing to arriving, in ms.
func quantiles(all []arrival) (p50, p99 float64) {
	if len(all) == 0 {
		return 0, 0
	}
	took := make([]int64, len(all))
	for i, a := range all {
		took[i] = a.came - a.sent
	}
	slices.Sort(took)
	return float64(took[len(took)/2]) / 1e6, float64(took[len(took)*99/100]) / 1e6
}

// receive answers 200 to everything and keeps when each event's request came.
func receive() {
	var (
		mu    sync.Mutex
		took  []arrival
		times [2]int64
	)
	m := new(machine)
	go m.watch()
	var slow, back, drips atomic.Int64 // requests
	mux := http.NewServeMux()
	mux.HandleFunc("/count/ok", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprint(w, len(took))
	})
	mux.HandleFunc("/count/slow", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, slow.Load()) })
	mux.HandleFunc("/count/drip", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, drips.Load()) })
	mux.HandleFunc("/count/back", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, back.Load()) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		now := time.Now().UnixNano()
		switch kind, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/"); kind {
		case "hang":
			<-r.Context().Done()
			return
		case "lag":
			time.Sleep(100 * time.Millisecond)
			now = time.Now().UnixNano()
		case "fail":
			w.WriteHeader(http.StatusInternalServerError)
			return
		case "back":
			back.Add(1)
			return
		case "drip":
			head := "" // a status line that does not end, and headers that do not
			if drips.Add(1)%2 == 0 {
				head = "HTTP/1.1 200 OK\r\n"
			}
			drip(w, head)
			return
		case "slow":
			slow.Add(1)
			select {
			case <-time.After(4900 * time.Millisecond):
			case <-r.Context().Done():
			}
			return
		}
		sent := now
		if _, rest, ok := bytes.Cut(body, []byte(`"sent":`)); ok {
			digits, _, _ := bytes.Cut(rest, []byte(","))
			sent, _ = strconv.ParseInt(string(digits), 10, 64)
		}
		mu.Lock()
		if times[0] == 0 {
			times[0] = now
		}
		times[1] = now
		took = append(took, arrival{r.URL.Path, sent, now})
		mu.Unlock()
	})
	mux.HandleFunc("/reset", func(http.ResponseWriter, *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		took, times = nil, [2]int64{}
		m.reset()
	})
	mux.HandleFunc("/report", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		r := report{First: times[0], Last: times[1]}
		all := slices.Clone(took)
		mu.Unlock()
		r.sum(all)
		r.P50, r.P99 = quantiles(all)
		stalls := m.stalls()
		all = slices.DeleteFunc(all, func(a arrival) bool { return during(stalls, a.sent, a.came) })
		r.Calm = len(all)
		_, r.CalmP99 = quantiles(all)
		_ = json.NewEncoder(w).Encode(r)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("listening on", l.Addr())
	_ = http.Serve(l, mux) //nolint:gosec // ends with the benchmark
}

// drip answers with head at once, then a byte a second, until the sender closes the connection.
func drip(w http.ResponseWriter, head string) {
	c, sent, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	gone := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, sent)
		close(gone)
	}()
	_, _ = io.WriteString(c, head)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	const text = "HTTP/1.1 200 OK, and more of it"
	for i := 0; ; i = (i + 1) % len(text) {
		_, _ = io.WriteString(c, text[i:i+1])
		select {
		case <-gone:
			return
		case <-tick.C:
		}
	}
}

func (b *bench) reset() { b.ask("/reset", nil) }

// count is how many requests of a kind the receiver has seen.
func (b *bench) count(kind string) (n int) {
	b.ask("/count/"+kind, &n)
	return n
}

func (b *bench) report() (r report) {
	b.ask("/report", &r)
	return r
}

func (b *bench) ask(path string, out any) {
	resp, err := http.Get("http://" + b.target + path)
	if err != nil {
		b.f.Fatalf("receiver: %v", err)
	}
	defer resp.Body.Close()
	if out != nil {
		if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
			b.f.Fatalf("receiver: %v", err)
		}
	}
}

// raw is the ceiling: a bare client, 64 requests at a time, connections kept.
func (b *bench) raw(name string) {
	const requests, workers = 40_000, 64
	b.reset()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: workers}}
	body := bytes.Repeat([]byte("x"), 1024)
	cpu, receiver := ownCPU(), b.receiver.CPU()
	began := time.Now()
	jobs := make(chan struct{}, workers)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range jobs {
				req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://"+b.target+"/ok/raw", bytes.NewReader(body))
				if err != nil {
					b.f.Fatalf("%v", err)
				}
				resp, err := client.Do(req)
				if err != nil {
					b.f.Fatalf("raw client: %v", err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		})
	}
	for range requests {
		jobs <- struct{}{}
	}
	close(jobs)
	wg.Wait()
	took := time.Since(began)
	rate := requests / took.Seconds()
	b.ceiling = max(b.ceiling, rate)
	per10k := func(d time.Duration) float64 { return d.Seconds() * 10_000 / requests }
	fmt.Printf("%-28s %10.0f %9s %9s %9s %12.2f %12.2f %10s\n", name, rate, "100 %", "", "", per10k(ownCPU()-cpu), per10k(b.receiver.CPU()-receiver), "")
}

// ownCPU is the processor time of this process.
func ownCPU() time.Duration { return testsystem.CPUOf(os.Getpid()) }
