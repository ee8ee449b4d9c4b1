package bolt

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/redoubt-mesh/redoubt/coordinator/store"
)

// childDir is the environment variable that makes a copy of the test the process that is killed.
const childDir = "REDOUBT_TEST_STORE_CHILD"

// childMain writes transactions until it is killed. Each writes its number under two keys and is then acknowledged by a line
// on standard output.
func childMain(dir string) {
	db, err := Open(dir, Options{})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	ctx := context.Background()
	start := 0
	if e, err := db.Get(ctx, "left"); err == nil {
		fmt.Sscan(string(e.Value), &start)
	}
	for i := start + 1; ; i++ {
		v := fmt.Append(nil, i)
		ops := []store.Op{
			store.Put("left", v), store.Put("right", v),
			store.Put(fmt.Sprint("n/", i), bytes.Repeat(v, 1+i%400)), store.Delete(fmt.Sprint("n/", i-50)),
		}
		if _, err := db.Txn(ctx, nil, ops); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println("ack", i)
	}
}

// runChild lets a child write until it has acknowledged some transactions, kills it while it writes on, and returns the last
// transaction that it acknowledged.
func runChild(t *testing.T, dir string, acks int) (last int) {
	t.Helper()
	c := exec.CommandContext(t.Context(), os.Args[0])
	c.Env = append(os.Environ(), childDir+"="+dir)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for n := 0; lines.Scan(); n++ {
		if _, err := fmt.Sscanf(lines.Text(), "ack %d", &last); err != nil {
			t.Fatalf("child says %q", lines.Text())
		}
		if n == acks {
			if err := c.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.Wait(); err == nil {
		t.Fatal("the child ended by itself")
	}
	return last
}

func TestKilledWhileWriting(t *testing.T) {
	dir := t.TempDir()
	for range 12 {
		acked := runChild(t, dir, rand.IntN(30))
		db := openDir(t, dir, Options{})
		left, right := get(t, db, "left"), get(t, db, "right")
		if left != right {
			t.Fatalf("half a transaction: %s and %s", left, right)
		}
		var n int
		fmt.Sscan(left, &n)
		if n < acked {
			t.Fatalf("transaction %d was acknowledged, the store has %d", acked, n)
		}
		list, rev, err := db.List(t.Context(), "n/")
		if err != nil || rev != uint64(n) {
			t.Fatalf("revision %d after %d transactions, %v", rev, n, err)
		}
		if want := min(n, 50); len(list) != want {
			t.Fatalf("%d entries after %d transactions, want %d", len(list), n, want)
		}
		if err := check(db.bolt); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPowerCut produces what a power cut can leave of an unacknowledged transaction: any of its pages, in any order, without
// the meta page that makes it valid, or with a torn one. The store must then be as it was before.
func TestPowerCut(t *testing.T) {
	dir := t.TempDir()
	db := openDir(t, dir, Options{})
	for i := range 40 {
		put(t, db, fmt.Sprint("k", i), string(bytes.Repeat([]byte("v"), 500)))
	}
	read := func() []byte {
		b, err := os.ReadFile(filepath.Join(dir, fileName))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	before := read()
	put(t, db, "k1", "after")
	after := read()
	size := db.bolt.Info().PageSize

	for range 60 {
		image := bytes.Clone(before)
		if len(after) > len(image) && rand.IntN(2) == 0 {
			image = append(image, make([]byte, len(after)-len(image))...)
		}
		for at := 2 * size; at+size <= min(len(image), len(after)); at += size {
			if rand.IntN(2) == 0 {
				copy(image[at:at+size], after[at:])
			}
		}
		if rand.IntN(2) == 0 { // tear a meta page, the one that the transaction wrote
			for at := 0; at < 2*size; at += size {
				if !bytes.Equal(before[at:at+size], after[at:at+size]) {
					copy(image[at:], after[at:at+16+rand.IntN(40)])
				}
			}
		}
		cut := t.TempDir()
		if err := os.WriteFile(filepath.Join(cut, fileName), image, 0o600); err != nil {
			t.Fatal(err)
		}
		again := openDir(t, cut, Options{})
		list, rev, err := again.List(t.Context(), "k")
		if err != nil || rev != 40 || len(list) != 40 || len(get(t, again, "k1")) != 500 {
			t.Fatalf("after a power cut: %d entries at revision %d, %v", len(list), rev, err)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAnotherProcessIsNamed(t *testing.T) {
	dir := t.TempDir()
	c := exec.CommandContext(t.Context(), os.Args[0])
	c.Env = append(os.Environ(), childDir+"="+dir)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("the child says nothing")
	}
	_, err = Open(dir, Options{})
	var held *HeldError
	if !errors.As(err, &held) || held.Holder.PID != c.Process.Pid || !strings.Contains(held.Holder.Command, os.Args[0]) {
		t.Errorf("opened beside process %d: %v", c.Process.Pid, err)
	}
	if !strings.Contains(err.Error(), fmt.Sprint("in use by process ", c.Process.Pid)) {
		t.Errorf("told as: %v", err)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() { // read to the end
	}
	_ = c.Wait()
	openDir(t, dir, Options{})
}
