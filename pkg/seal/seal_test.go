package seal

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func b64(n int, fill byte) string {
	return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{fill}, n))
}

func write(tb testing.TB, mode os.FileMode, text string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "keys")
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		tb.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		tb.Fatal(err)
	}
	return path
}

func load(tb testing.TB, text string) *Keyring {
	tb.Helper()
	ring, _, err := Load(write(tb, 0o600, text))
	if err != nil {
		tb.Fatal(err)
	}
	return ring
}

func TestLoad(t *testing.T) {
	t.Parallel()
	a, b := b64(32, 0xaa), b64(32, 0xbb)
	for _, tc := range []struct {
		name, text string
		ids        []string
		err        string // a part of it
	}{
		{"one key", "k1:" + a, []string{"k1"}, ""},
		{"trailing newline", "k1:" + a + "\n", []string{"k1"}, ""},
		{"order, comments, blank lines, CR LF", "# c\r\n\r\n k2 : " + b + " \r\n  # c\nk1:" + a + "\n\n", []string{"k2", "k1"}, ""},
		{"byte order mark", "\ufeffk1:" + a, []string{"k1"}, ""},
		{"empty", "", nil, "holds no key"},
		{"only comments", "# c\n\n", nil, "holds no key"},
		{"no colon", a, nil, "line 1 has no colon"},
		{"bad base64", "k1:" + a[:20] + "!", nil, `line 1 (key id "k1") is not base64`},
		{"31 bytes", "k1:" + b64(31, 0xaa), nil, "31 bytes"},
		{"33 bytes", "# c\nk1:" + b64(33, 0xaa), nil, "line 2"},
		{"no id", ":" + a, nil, "bad key id"},
		{"id with a dot", "a.b:" + a, nil, "bad key id"},
		{"long id", strings.Repeat("k", 65) + ":" + a, nil, "bad key id"},
		{"id twice", "k1:" + a + "\nk1:" + b, nil, `line 2 has the key id "k1" of line 1 again`},
		{"two problems, both named", "k1:x\nk2:" + b64(16, 0xaa), nil, "line 2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			ring, warnings, err := Load(write(t, 0o600, tc.text))
			if len(warnings) > 0 {
				t.Errorf("warnings %q for a private file", warnings)
			}
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) || !strings.Contains(err.Error(), "ENCRYPTION_KEY_FILE") {
					t.Errorf("err = %v, want one with %q that names the variable", err, tc.err)
				}
				if err != nil && strings.Contains(err.Error(), a[:12]) {
					t.Errorf("the error repeats a key: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var ids []string
			for _, k := range ring.keys {
				ids = append(ids, k.id)
			}
			if diff := cmp.Diff(tc.ids, ids); diff != "" {
				t.Errorf("key ids (-want +got):\n%s", diff)
			}
			if ring.Current() != tc.ids[0] {
				t.Errorf("Current() = %q, want %q", ring.Current(), tc.ids[0])
			}
		})
	}
}

func TestLoadFile(t *testing.T) {
	t.Parallel()
	if _, _, err := Load(""); err == nil || !strings.Contains(err.Error(), "ENCRYPTION_KEY_FILE: not set") {
		t.Errorf("no path: %v", err)
	}
	if _, _, err := Load(filepath.Join(t.TempDir(), "none")); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("missing file: %v", err)
	}
	if _, _, err := Load(t.TempDir()); err == nil {
		t.Error("a directory was accepted")
	}
	for mode, want := range map[os.FileMode]int{0o600: 0, 0o640: 0, 0o604: 1, 0o644: 1, 0o602: 1} {
		_, warnings, err := Load(write(t, mode, "k1:"+b64(32, 1)))
		if err != nil || len(warnings) != want {
			t.Errorf("mode %04o: warnings %q, err %v, want %d warnings", mode, warnings, err, want)
		}
	}
}

func TestWrite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "keys")
	ring := New()
	if err := ring.Write(path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, err %v, want 0600", info.Mode(), err)
	}
	again, warnings, err := Load(path)
	if err != nil || len(warnings) > 0 {
		t.Fatalf("load what was written: %v, %q", err, warnings)
	}
	if got, err := again.Open(ring.Seal([]byte("s"), nil), nil); err != nil || string(got) != "s" {
		t.Errorf("opened %q, %v", got, err)
	}
	if err := New().Write(path); err == nil {
		t.Error("an existing key file was overwritten")
	}
	if got, _, err := Load(path); err != nil || got.Current() != ring.Current() {
		t.Errorf("after a refused write: %v, %v", got, err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("files left behind: %v", left)
	}
	if err := ring.Write(filepath.Join(dir, "none", "keys")); err == nil {
		t.Error("written into a directory that does not exist")
	}
}

func TestSealOpen(t *testing.T) {
	t.Parallel()
	ring := load(t, "k1:"+b64(32, 1))
	context := []byte("acme/w1/secret")
	for _, plain := range []string{"", "s", strings.Repeat("long", 5000), "\x00\xff"} {
		sealed := ring.Seal([]byte(plain), context)
		if !strings.HasPrefix(sealed, "v1.k1.") {
			t.Errorf("sealed form %q", sealed)
		}
		got, err := ring.Open(sealed, context)
		if err != nil || string(got) != plain {
			t.Errorf("opened %q, %v, want %q", got, err, plain)
		}
	}
	if ring.Seal([]byte("s"), context) == ring.Seal([]byte("s"), context) {
		t.Error("the same value sealed twice gave the same text")
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	ring := load(t, "k1:"+b64(32, 1)+"\nk2:"+b64(32, 2))
	context := []byte("acme/w1/secret")
	sealed := ring.Seal([]byte("canary"), context)
	box := strings.TrimPrefix(sealed, "v1.k1.")
	for _, tc := range []struct{ name, sealed, context string }{
		{"other account", sealed, "umbrella/w1/secret"},
		{"other field", sealed, "acme/w1/auth_key"},
		{"no context", sealed, ""},
		{"other key id", "v1.k2." + box, string(context)},
		{"unknown key id", "v1.k3." + box, string(context)},
		{"other version", "v2.k1." + box, string(context)},
		{"version and id moved into the context", "v1.k1." + box, "k1." + string(context)},
		{"empty", "", string(context)},
		{"no box", "v1.k1.", string(context)},
		{"no id", "v1.." + box, string(context)},
		{"cut", sealed[:len(sealed)-4], string(context)},
		{"longer", sealed + "AAAA", string(context)},
		{"not base64", "v1.k1.!!!", string(context)},
		{"line break inside", sealed[:20] + "\n" + sealed[20:], string(context)},
		{"plain text", "canary", string(context)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := ring.Open(tc.sealed, []byte(tc.context))
			if err == nil {
				t.Fatalf("opened %q", got)
			}
			if strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), box) {
				t.Errorf("the error repeats the value: %v", err)
			}
		})
	}
	t.Run("every bit", func(t *testing.T) {
		t.Parallel()
		raw, err := base64.RawURLEncoding.DecodeString(box)
		if err != nil {
			t.Fatal(err)
		}
		for i := range len(raw) * 8 {
			flipped := bytes.Clone(raw)
			flipped[i/8] ^= 1 << (i % 8)
			if _, err := ring.Open("v1.k1."+base64.RawURLEncoding.EncodeToString(flipped), context); err == nil {
				t.Fatalf("opened with bit %d flipped", i)
			}
		}
	})
}

func TestRotation(t *testing.T) {
	t.Parallel()
	one, two := "old:"+b64(32, 1)+"\n", "new:"+b64(32, 2)+"\n"
	context := []byte("c")
	before := load(t, one)
	sealed := before.Seal([]byte("s"), context)

	during := load(t, two+one)
	if id, err := KeyID(sealed); err != nil || id != "old" || id == during.Current() {
		t.Fatalf("KeyID = %q, %v", id, err)
	}
	plain, err := during.Open(sealed, context)
	if err != nil {
		t.Fatal(err)
	}
	again := during.Seal(plain, context)
	if id, _ := KeyID(again); id != "new" {
		t.Errorf("sealed again under %q", id)
	}

	after := load(t, two)
	if got, err := after.Open(again, context); err != nil || string(got) != "s" {
		t.Errorf("after rotation: %q, %v", got, err)
	}
	if _, err := after.Open(sealed, context); err == nil || !strings.Contains(err.Error(), `its key is not in ENCRYPTION_KEY_FILE; add the line again: "old"`) {
		t.Errorf("value under the removed key: %v", err)
	}
}

func TestAddAndRemove(t *testing.T) {
	t.Parallel()
	path := write(t, 0o600, "\ufeff# ours\nold:"+b64(32, 1)+"\n\nolder:"+b64(32, 2)) // no line break at the end
	ids := func() (out []string) {
		t.Helper()
		ring, warnings, err := Load(path)
		if err != nil || len(warnings) > 0 {
			t.Fatal(err, warnings)
		}
		for _, k := range ring.keys {
			out = append(out, k.id)
		}
		return out
	}
	id, err := Add(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := ids(), []string{id, "old", "older"}; !cmp.Equal(got, want) {
		t.Fatalf("after Add: %q, want %q", got, want)
	}
	for _, refused := range []string{id, "none", "# ours", ""} {
		if err := Remove(path, refused); err == nil {
			t.Errorf("Remove(%q) did not fail", refused)
		}
	}
	for _, old := range []string{"old", "older"} {
		if err := Remove(path, old); err != nil {
			t.Error(err)
		}
	}
	if got, want := ids(), []string{id}; !cmp.Equal(got, want) {
		t.Errorf("after Remove: %q, want %q", got, want)
	}
	text, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(text), "# ours\n") {
		t.Errorf("the file is %q, %v", text, err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("files left: %v, %v", left, err)
	}
	bad := write(t, 0o600, "broken")
	if _, err := Add(bad); err == nil {
		t.Error("a key was added to a file that cannot be read")
	}
	if text, _ := os.ReadFile(bad); string(text) != "broken" {
		t.Errorf("a bad file was changed to %q", text)
	}
	if _, err := Add(path + "-none"); err == nil {
		t.Error("Add made a file")
	}
}

func TestMAC(t *testing.T) {
	t.Parallel()
	one, two := "old:"+b64(32, 1)+"\n", "new:"+b64(32, 2)+"\n"
	old, both := load(t, one), load(t, two+one)
	data := []byte(`{"id":"1"`)
	mac := old.MAC("records", data)
	if id, err := KeyID(mac); err != nil || id != "old" {
		t.Fatalf("the MAC is %q (key %q, %v)", mac, id, err)
	}
	if err := both.Verify("records", data, mac); err != nil {
		t.Errorf("under the second key: %v", err)
	}
	for name, err := range map[string]error{
		"other data":     old.Verify("records", []byte(`{"id":"2"`), mac),
		"other purpose":  old.Verify("sessions", data, mac),
		"other key":      both.Verify("records", data, strings.Replace(mac, "old", "new", 1)),
		"cut":            old.Verify("records", data, mac[:len(mac)-1]),
		"longer":         old.Verify("records", data, mac+"A"),
		"empty":          old.Verify("records", data, ""),
		"a sealed value": old.Verify("records", data, old.Seal(data, nil)),
	} {
		if err == nil || errors.Is(err, ErrUnknownKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := old.Verify("records", data, both.MAC("records", data)); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("unknown key: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	ring := load(f, "k1:"+b64(32, 1))
	// Fixed, as each worker process of the fuzzer runs this function again.
	const sealed = "v1.k1.INyZVSpYmCd745A3z8j3DPSPF0H4jm4C7_aaWtw"
	f.Add(sealed, []byte("c"))
	f.Add("v1.k1.", []byte(""))
	f.Add("v1.k1.AAAA", []byte("c"))
	f.Fuzz(func(t *testing.T, text string, context []byte) {
		plain, err := ring.Open(text, context)
		if err == nil && (text != sealed || string(context) != "c" || string(plain) != "s") {
			t.Fatalf("opened a forged value %q in context %q", text, context)
		}
		if id, err := KeyID(text); err == nil && !strings.HasPrefix(text, "v1."+id+".") {
			t.Fatalf("KeyID(%q) = %q", text, id)
		}
	})
}

func FuzzSealOpen(f *testing.F) {
	f.Add([]byte("whsec_x"), []byte("acme/w1/secret"))
	ring := load(f, "k1:"+b64(32, 1))
	f.Fuzz(func(t *testing.T, plain, context []byte) {
		got, err := ring.Open(ring.Seal(plain, context), context)
		if err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("opened %q, %v, want %q", got, err, plain)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("k1:" + b64(32, 1) + "\n# c\n"))
	f.Add([]byte("k1\n:"))
	f.Fuzz(func(t *testing.T, text []byte) {
		ring, err := parse(text)
		if (ring == nil) == (err == nil) {
			t.Fatalf("parse(%q) = %v, %v", text, ring, err)
		}
		if err == nil && ring.Current() == "" {
			t.Fatalf("parse(%q): no current key", text)
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	ring := New()
	context := []byte("acme/w1/secret")
	sealed := ring.Seal(make([]byte, 32), context)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ring.Open(sealed, context); err != nil {
			b.Fatal(err)
		}
	}
}
