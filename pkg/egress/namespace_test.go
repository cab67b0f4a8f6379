package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inNamespace is set in the process that the test below starts in a network of its own.
const inNamespace = "EGRESS_TEST_IN_NAMESPACE"

func TestMain(m *testing.M) {
	if os.Getenv(inNamespace) == "" {
		os.Exit(m.Run())
	}
	if err := dialEverywhere(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// TestRealDials makes 1,000 connections to public and refused addresses inside a network namespace where
// every address there is belongs to the loopback interface: each would be accepted, and no packet leaves.
func TestRealDials(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if uid := os.Geteuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSYS) {
		t.Fatalf("this test needs a network namespace, and the system does not let it make one: %v\n"+
			"run it as root, or allow unprivileged user namespaces", err)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// dialEverywhere runs in the namespace.
func dialEverywhere() error {
	if err := takeAllAddresses(); err != nil {
		return err
	}
	reached, port, err := acceptAll()
	if err != nil {
		return err
	}
	p, err := New(Config{AllowPorts: []string{port}})
	if err != nil {
		return err
	}

	// Without the guard the metadata service and the like are in reach: the test would notice.
	for _, addr := range []string{"169.254.169.254", "10.0.0.1", "127.0.0.1", "8.8.8.8", "fd00:ec2::254", "64:ff9b::7f00:1", "2606:4700::1"} {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(addr, port), 5*time.Second)
		if err != nil {
			return fmt.Errorf("control dial: %w", err)
		}
		_ = c.Close()
		if !reached.await(addr) {
			return fmt.Errorf("control dial to %s arrived elsewhere", addr)
		}
	}

	const dials = 1000
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 1))
	var addrs []netip.Addr
	for open, closed := 0, 0; open+closed < dials; {
		a := generate(r)
		if a.Is4In6() {
			continue // dialled as IPv4; TestNames has them
		}
		if oracle(a) && open < dials/2 {
			open++
		} else if !oracle(a) && closed < dials/2 {
			closed++
		} else {
			continue
		}
		addrs = append(addrs, a)
	}

	var wg sync.WaitGroup
	problems := make(chan error, dials)
	work := make(chan netip.Addr)
	for range 16 {
		wg.Go(func() {
			for a := range work {
				if err := dialOne(p, a, port, reached); err != nil {
					problems <- fmt.Errorf("%w (seed %d)", err, seed)
				}
			}
		})
	}
	for _, a := range addrs {
		work <- a
	}
	close(work)
	wg.Wait()
	close(problems)
	var all []error
	for err := range problems {
		all = append(all, err)
	}
	if left := reached.all(); len(left) > 0 {
		all = append(all, fmt.Errorf("reached without being dialled: %v", left))
	}
	if len(all) == 0 {
		fmt.Fprintf(os.Stdout, "%d dials: every public address was reached, no other\n", dials)
	}
	return errors.Join(all...)
}

func dialOne(p *Policy, a netip.Addr, port string, reached *addresses) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := p.DialContext(ctx, "tcp", net.JoinHostPort(a.String(), port))
	if err == nil {
		_ = c.Close()
	}
	if !oracle(a) {
		if _, ok := errors.AsType[*Blocked](err); !ok {
			return fmt.Errorf("%s: want it blocked, got: %w", a, err)
		}
		if reached.take(a.String()) {
			return fmt.Errorf("%s was reached", a)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s is public: %w", a, err)
	}
	if !reached.await(a.String()) {
		return fmt.Errorf("%s was dialled and never reached", a)
	}
	return nil
}

// addresses counts accepted connections by the address they were made to.
type addresses struct {
	mu sync.Mutex
	n  map[string]int
}

func (s *addresses) take(addr string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n[addr] == 0 {
		return false
	}
	if s.n[addr]--; s.n[addr] == 0 {
		delete(s.n, addr)
	}
	return true
}

// await waits for a connection that was made: its accept is noted a moment later.
func (s *addresses) await(addr string) bool {
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !s.take(addr) {
		select {
		case <-tick.C:
		case <-deadline:
			return false
		}
	}
	return true
}

func (s *addresses) all() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// acceptAll listens on every address of the namespace.
func acceptAll() (*addresses, string, error) {
	ln, err := net.Listen("tcp", ":0") // both families
	if err != nil {
		return nil, "", err
	}
	_, port, err := net.SplitHostPort(ln.Addr().String())
	s := &addresses{n: make(map[string]int)}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if to, err := netip.ParseAddrPort(c.LocalAddr().String()); err == nil {
				s.mu.Lock()
				s.n[to.Addr().Unmap().String()]++
				s.mu.Unlock()
			}
			_ = c.Close()
		}
	}()
	return s, port, err
}

// takeAllAddresses brings up the loopback interface and gives it every IPv4 and IPv6 address, as
// "ip route add local 0.0.0.0/0 dev lo" does.
func takeAllAddresses() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		if err := addLocalRoute(family); err != nil {
			return fmt.Errorf("route everything to lo (family %d): %w", family, err)
		}
	}
	return nil
}

// addLocalRoute asks the kernel over netlink (rtnetlink(7)) to treat all addresses of a family as local.
func addLocalRoute(family byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const size = unix.SizeofNlMsghdr + unix.SizeofRtMsg + unix.SizeofRtAttr + 4
	msg := make([]byte, 0, size)
	native := binary.NativeEndian
	msg = native.AppendUint32(msg, size)
	msg = native.AppendUint16(msg, unix.RTM_NEWROUTE)
	msg = native.AppendUint16(msg, unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE)
	msg = native.AppendUint32(msg, 1) // sequence
	msg = native.AppendUint32(msg, 0) // port
	msg = append(msg, family, 0, 0, 0, unix.RT_TABLE_LOCAL, unix.RTPROT_BOOT, unix.RT_SCOPE_HOST, unix.RTN_LOCAL)
	msg = native.AppendUint32(msg, 0) // flags
	msg = native.AppendUint16(msg, unix.SizeofRtAttr+4)
	msg = native.AppendUint16(msg, unix.RTA_OIF)
	msg = native.AppendUint32(msg, 1) // lo is always the first interface
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	reply := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, reply, 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 || native.Uint16(reply[4:]) != unix.NLMSG_ERROR {
		return errors.New("unexpected answer of the kernel")
	}
	if code := int32(native.Uint32(reply[unix.SizeofNlMsghdr:])); code != 0 {
		return syscall.Errno(-code)
	}
	return nil
}
