// A receiver of notifications: SECRET=whsec_... PORT=8900 go run receiver.go
package main

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"math"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const tolerance = 5 * time.Minute // between the sender's clock and ours

// verify reports whether body came from whoever holds secret (whsec_...), a short while ago.
func verify(secret string, h http.Header, body []byte) bool {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		return false
	}
	id, timestamp := h.Get("webhook-id"), h.Get("webhook-timestamp")
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil || math.Abs(time.Since(time.Unix(seconds, 0)).Seconds()) > tolerance.Seconds() {
		return false
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", id, timestamp, body)
	want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	good := false
	for _, signature := range strings.Split(h.Get("webhook-signature"), " ") {
		// Two signatures come while the secret is being rotated: one good one is enough.
		good = hmac.Equal([]byte(signature), []byte(want)) || good
	}
	return good
}

func main() {
	var seen sync.Map // ids already processed; a real receiver keeps them in its database
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 2<<20))
		if err != nil || !verify(os.Getenv("SECRET"), r.Header, body) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if _, twice := seen.LoadOrStore(r.Header.Get("webhook-id"), true); !twice { // the same one can come twice
			fmt.Println(r.Header.Get("gancho-event"), string(body))
		}
		w.WriteHeader(http.StatusNoContent) // within 5 s: what takes longer belongs into a queue of yours
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+cmp.Or(os.Getenv("PORT"), "8900"), nil))
}
