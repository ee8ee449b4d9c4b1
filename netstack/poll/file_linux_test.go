package poll

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair returns a File and the descriptor of its far end.
func pair(t *testing.T) (*File, int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[1]) })
	f, err := New(fds[0], "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, fds[1]
}

func send(t *testing.T, fd int, s string) {
	t.Helper()
	if _, err := unix.Write(fd, []byte(s)); err != nil {
		t.Error(err)
	}
}

// take reads one message; "" means there is none.
func take(t *testing.T, f *File) (s string) {
	t.Helper()
	err := f.Do(func(fd uintptr) {
		buf := make([]byte, 16)
		n, err := unix.Read(int(fd), buf)
		if err == nil {
			s = string(buf[:n])
		} else if err != unix.EAGAIN {
			t.Error(err)
		}
	})
	if err != nil {
		t.Error(err)
	}
	return s
}

// next waits for a message.
func next(t *testing.T, f *File) string {
	t.Helper()
	for {
		if s := take(t, f); s != "" {
			return s
		}
		if err := f.WaitRead(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWaitRead(t *testing.T) {
	f, far := pair(t)
	ask, answer := make(chan string), make(chan string)
	go func() {
		for s := range ask {
			send(t, far, s)
		}
	}()
	defer close(ask)
	go func() {
		defer close(answer)
		for range 1000 {
			answer <- next(t, f)
		}
	}()
	for range 1000 {
		ask <- "x"
		if got := <-answer; got != "x" {
			t.Fatalf("got %q", got)
		}
	}
}

// A wait ends at once if there is something to read already.
func TestWaitReadForWhatIsThere(t *testing.T) {
	f, far := pair(t)
	for range 3 {
		send(t, far, "x")
		if err := f.WaitRead(); err != nil {
			t.Fatal(err)
		}
		if got := take(t, f); got != "x" {
			t.Fatalf("got %q", got)
		}
	}
}

// Events while nobody waits wake nobody: this is the purpose of the package.
func TestRingsForWhoWaits(t *testing.T) {
	f, far := pair(t)
	rings := func(b *bell) bool {
		t.Helper()
		n := 0
		err := b.raw.Control(func(epoll uintptr) {
			var err error
			if n, err = unix.Poll([]unix.PollFd{{Fd: int32(epoll), Events: unix.POLLIN}}, 0); err != nil {
				t.Error(err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return n > 0
	}
	send(t, far, "x")
	if rings(f.readable) {
		t.Error("it rings, and nobody waits")
	}
	if err := f.WaitRead(); err != nil {
		t.Fatal(err)
	}
	if rings(f.readable) {
		t.Error("it still rings after the wait")
	}
	send(t, far, "y")
	if rings(f.readable) {
		t.Error("it rings a second time for one wait")
	}
}

func TestWaitWrite(t *testing.T) {
	f, far := pair(t)
	var errno error
	sent := 0
	fill := func(fd uintptr) {
		for {
			if _, errno = unix.Write(int(fd), []byte("x")); errno != nil {
				return
			}
			sent++
		}
	}
	if err := f.Do(fill); err != nil || errno != unix.EAGAIN {
		t.Fatal(err, errno)
	}
	full, done := sent, make(chan error)
	go func() { done <- f.WaitWrite() }()
	buf := make([]byte, 1)
	for range full {
		if _, err := unix.Read(far, buf); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := f.Do(fill); err != nil || sent == full {
		t.Fatalf("no room after the wait: %v", err)
	}
}

func TestReadDeadline(t *testing.T) {
	f, far := pair(t)
	done := make(chan error)
	go func() { done <- f.WaitRead() }()
	if err := f.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("after the deadline: %v", err)
	}
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	// The wait that ended early must not keep the next one from ending.
	go func() { done <- f.WaitRead() }()
	send(t, far, "x")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestClose(t *testing.T) {
	f, _ := pair(t)
	done := make(chan error)
	go func() { done <- f.WaitRead() }()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"the wait": <-done, "WaitRead": f.WaitRead(), "WaitWrite": f.WaitWrite(), "Do": f.Do(func(uintptr) { t.Error("called") }),
	} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestNewOfNothing(t *testing.T) {
	if f, err := New(1<<30, "test"); err == nil {
		f.Close()
		t.Error("a descriptor that is not open is taken")
	}
}

func TestAllocations(t *testing.T) {
	f, far := pair(t)
	msg, buf := []byte("x"), make([]byte, 16)
	read := func(fd uintptr) { _, _ = unix.Read(int(fd), buf) }
	if n := testing.AllocsPerRun(100, func() {
		_, _ = unix.Write(far, msg)
		_ = f.WaitRead()
		_ = f.Do(read)
	}); n != 0 {
		t.Errorf("a wait takes %v allocations", n)
	}
}
