package egress

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// u128 is an IPv6 address as a number.
type u128 struct{ hi, lo uint64 }

func (x u128) less(y u128) bool { return x.hi < y.hi || x.hi == y.hi && x.lo < y.lo }

func number(a netip.Addr) u128 {
	b := a.As16()
	return u128{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// The oracle knows the same registries in another form: first and last address as numbers, written down
// from the registries and not from the tables under test.
var (
	closed4 = [][2]uint32{
		{0x00000000, 0x00ffffff},
		{0x0a000000, 0x0affffff},
		{0x64400000, 0x647fffff},
		{0x7f000000, 0x7fffffff},
		{0xa9fe0000, 0xa9feffff},
		{0xac100000, 0xac1fffff},
		{0xc0000000, 0xc00000ff},
		{0xc0000200, 0xc00002ff},
		{0xc01fc400, 0xc01fc4ff},
		{0xc034c100, 0xc034c1ff},
		{0xc0586300, 0xc05863ff},
		{0xc0a80000, 0xc0a8ffff},
		{0xc0af3000, 0xc0af30ff},
		{0xc6120000, 0xc613ffff},
		{0xc6336400, 0xc63364ff},
		{0xcb007100, 0xcb0071ff},
		{0xe0000000, 0xffffffff},
	}
	ones    = ^uint64(0)
	closed6 = [][2]u128{
		{u128{0, 0}, u128{0x1fffffffffffffff, ones}},
		{u128{0x2001000000000000, 0}, u128{0x200101ffffffffff, ones}},
		{u128{0x20010db800000000, 0}, u128{0x20010db8ffffffff, ones}},
		{u128{0x2002000000000000, 0}, u128{0x2002ffffffffffff, ones}},
		{u128{0x2620004f80000000, 0}, u128{0x2620004f8000ffff, ones}},
		{u128{0x3fff000000000000, 0}, u128{0x3fff0fffffffffff, ones}},
		{u128{0x4000000000000000, 0}, u128{ones, ones}},
	}
)

func oracle(a netip.Addr) (open bool) {
	if a.Zone() != "" || !a.IsValid() {
		return false
	}
	if a.Is4() {
		b := a.As4()
		n := binary.BigEndian.Uint32(b[:])
		for _, r := range closed4 {
			if r[0] <= n && n <= r[1] {
				return false
			}
		}
		return true
	}
	n := number(a)
	for _, r := range closed6 {
		if !n.less(r[0]) && !r[1].less(n) {
			return false
		}
	}
	return true
}

// generate makes addresses that are often near the ends of a range: uniformly random ones would hardly ever
// meet one in IPv6.
func generate(r *rand.Rand) netip.Addr {
	var b [16]byte
	switch r.IntN(4) {
	case 0: // anywhere in IPv4
		binary.BigEndian.PutUint32(b[:], r.Uint32())
		return netip.AddrFrom4([4]byte(b[:4]))
	case 1: // near an end in IPv4
		end := closed4[r.IntN(len(closed4))][r.IntN(2)]
		binary.BigEndian.PutUint32(b[:], end+uint32(r.IntN(5))-2)
		return netip.AddrFrom4([4]byte(b[:4]))
	case 2: // near an end in IPv6
		end := closed6[r.IntN(len(closed6))][r.IntN(2)]
		var lo, carry uint64
		switch step := uint64(r.IntN(3)); r.IntN(2) {
		case 0:
			lo, carry = bits.Add64(end.lo, step, 0)
			end.hi += carry
		default:
			lo, carry = bits.Sub64(end.lo, step, 0)
			end.hi -= carry
		}
		binary.BigEndian.PutUint64(b[:8], end.hi)
		binary.BigEndian.PutUint64(b[8:], lo)
	default: // a registered beginning, then anything
		binary.BigEndian.PutUint64(b[:8], r.Uint64())
		binary.BigEndian.PutUint64(b[8:], r.Uint64())
		if r.IntN(2) == 0 {
			heads := [...]uint64{0x2000000000000000, 0x20010db800000000, 0x2002000000000000, 0x3fff000000000000, 0x0064ff9b00000000, 0xfc00000000000000, 0, 0x2600000000000000}
			head := heads[r.IntN(len(heads))]
			binary.BigEndian.PutUint64(b[:8], head|r.Uint64()>>(16+r.IntN(48)))
		}
	}
	return netip.AddrFrom16(b)
}

// TestAgainstOracle compares a million generated addresses, ten million with -run TestAgainstOracle -count 10.
func TestAgainstOracle(t *testing.T) {
	t.Parallel()
	p := policy(t, Config{})
	p.own.Store(&ownAddrs{read: time.Now().Add(time.Hour)}) // the oracle does not know this machine
	n := 1_000_000
	if testing.Short() {
		n = 100_000
	}
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	var open int
	for range n {
		a := generate(r)
		want := oracle(a)
		if want {
			open++
		}
		if got := p.AddrAllowed(a) == nil; got != want {
			t.Fatalf("%s: open %v, the oracle says %v (seed %d)", a, got, want, seed)
		}
	}
	if open < n/10 || open > n*9/10 {
		t.Errorf("%d of %d addresses are open: the generator is lopsided", open, n)
	}
}

func FuzzAddrAllowed(f *testing.F) {
	for _, s := range []string{"8.8.8.8", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "fe80::1%eth0", "2606:4700::1", "169.254.169.254"} {
		a := netip.MustParseAddr(s)
		b := a.As16()
		f.Add(b[:], a.Is4(), a.Zone())
	}
	p := policy(f, Config{})
	p.own.Store(&ownAddrs{read: time.Now().Add(24 * time.Hour)})
	f.Fuzz(func(t *testing.T, raw []byte, v4 bool, zone string) {
		a, ok := netip.AddrFromSlice(raw)
		if v4 && len(raw) == 16 {
			a = netip.AddrFrom4([4]byte(raw[12:]))
		}
		if !ok {
			a = netip.Addr{}
		}
		if a.Is6() {
			a = a.WithZone(zone)
		}
		err := p.AddrAllowed(a)
		if (err == nil) != oracle(a) {
			t.Fatalf("%s: %v, the oracle says open %v", a, err, oracle(a))
		}
		if err != nil && err.Error() == "" {
			t.Fatal("no reason")
		}
	})
}

func BenchmarkAddrAllowed(b *testing.B) {
	p := policy(b, Config{})
	for _, s := range []string{"93.184.215.14", "10.0.0.1", "2606:4700::1111"} {
		a := netip.MustParseAddr(s)
		b.Run(s, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = p.AddrAllowed(a)
			}
		})
	}
}
