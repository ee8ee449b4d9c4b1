package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/api"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/redoubt/v1/redoubtv1connect"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "worker" {
		check(worker(os.Stdin, os.Stdout))
		return
	}
	bin := flag.String("bin", "bin", "directory with redoubt-coordinator")
	sizes := flag.String("nodes", "100,1000,10000", "how many nodes, in groups of 21 that see each other")
	all := flag.Int("all", 1000, "how many nodes that all see each other; 0: none")
	rounds := flag.Int("rounds", 20, "changes of each kind")
	idle := flag.Duration("idle", 30*time.Second, "how long to look at the idle coordinator")
	locks := flag.Int("lock", 0, "measure only how fast a lock and a revocation reach this many nodes that know the node; 0: do not")
	renew := flag.Duration("renew", 0, "how long nodes renew, as many per second as 10,000 nodes do in 30 min; 0: not at all")
	metrics := flag.String("metrics", "", "`ADDR` for the coordinator's metrics")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if *locks > 0 {
		check(measureLocks(ctx, *bin, *metrics, *locks, *rounds))
		return
	}
	if *renew > 0 {
		fmt.Println("| nodes | renewals | CPU-ms each, with what others are told | 10,000 in 30 min, % of a core | idle, % of a core |")
		fmt.Println("| --- | --- | --- | --- | --- |")
	} else {
		heading()
	}
	for s := range strings.SplitSeq(*sizes, ",") {
		if s == "" {
			continue
		}
		n, err := strconv.Atoi(s)
		check(err)
		check(measure(ctx, *bin, *metrics, plan{nodes: n, group: 21}, *rounds, *idle, *renew))
	}
	if *all > 0 {
		check(measure(ctx, *bin, *metrics, plan{nodes: *all, group: *all}, *rounds, *idle, *renew))
	}
}

func heading() {
	fmt.Println("| nodes | joins, CPU-ms each | RSS, KB per node | idle, % of a core | all back, s | CPU-s | all changed: last node, ms | p99, ms | CPU-s | ten changed: p99, ms | one rule: p99, ms | CPU-ms | bytes per node | bytes to others |")
	fmt.Println("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

// fleet is a coordinator and its nodes.
type fleet struct {
	plan
	admin   redoubtv1connect.AdminServiceClient
	serve   *exec.Cmd
	workers []*process
}

// process is a worker process.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

func (p *process) ask(c command) (answer, error) {
	var a answer
	if err := json.NewEncoder(p.in).Encode(c); err != nil {
		return a, err
	}
	if err := p.out.Decode(&a); err != nil {
		return a, err
	}
	if a.Err != "" {
		return a, errors.New(a.Err)
	}
	return a, nil
}

// workers is how many processes share the nodes.
const workers = 2

// all sends every worker its command, all at once.
func (f *fleet) all(each func(i int) command) ([]answer, error) {
	answers, errs := make([]answer, len(f.workers)), make([]error, len(f.workers))
	var wait sync.WaitGroup
	for i, p := range f.workers {
		wait.Go(func() { answers[i], errs[i] = p.ask(each(i)) })
	}
	wait.Wait()
	return answers, errors.Join(errs...)
}

func (f *fleet) do(what string) ([]answer, error) {
	return f.all(func(int) command { return command{Do: what} })
}

func start(ctx context.Context, bin, metrics, dir string, p plan) (*fleet, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	f := &fleet{plan: p}
	args := []string{"serve", "--data", dir, "--listen", address, "--url", "https://" + address, "--range", "100.64.0.0/16", "--log-level", "warn"}
	if metrics != "" {
		args = append(args, "--metrics", metrics)
	}
	f.serve = exec.CommandContext(ctx, filepath.Join(bin, "redoubt-coordinator"), args...)
	f.serve.Cancel = func() error { return f.serve.Process.Signal(syscall.SIGTERM) }
	f.serve.Stderr = os.Stderr
	said, err := f.serve.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := f.serve.Start(); err != nil {
		return nil, err
	}
	if _, err := bufio.NewReader(said).ReadString('\n'); err != nil {
		return nil, errors.Join(fmt.Errorf("the coordinator did not start: %w", err), f.close())
	}
	go func() { _, _ = io.Copy(io.Discard, said) }()
	f.admin = api.NewClient(filepath.Join(dir, "admin.sock"))
	for range workers {
		if err := f.hire(ctx); err != nil {
			return nil, errors.Join(err, f.close())
		}
	}
	return f, nil
}

func (f *fleet) hire(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	p := &process{cmd: exec.CommandContext(ctx, self, "worker")}
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	p.out = json.NewDecoder(out)
	if err := p.cmd.Start(); err != nil {
		return err
	}
	f.workers = append(f.workers, p)
	return nil
}

func (f *fleet) close() error {
	var errs []error
	for _, p := range f.workers {
		errs = append(errs, p.in.Close(), p.cmd.Wait())
	}
	return errors.Join(append(errs, f.serve.Process.Signal(syscall.SIGTERM), f.serve.Wait())...)
}

// settled waits until every node has acknowledged what it should enforce.
func (f *fleet) settled(ctx context.Context) error {
	st, err := f.admin.PolicyStatus(ctx, &redoubtv1.PolicyStatusRequest{WaitMs: 120_000})
	if err == nil && len(st.GetLaggards()) > 0 {
		err = fmt.Errorf("%d of %d nodes lag after two minutes, such as %v", len(st.GetLaggards()), st.GetNodes(), st.GetLaggards()[0])
	}
	return err
}

// cpu returns the coordinator's CPU time so far, in seconds.
func (f *fleet) cpu() float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", f.serve.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100 // USER_HZ
}

// rss returns the coordinator's resident memory, in KB.
func (f *fleet) rss() float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", f.serve.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(v)[0], 64)
			return kb
		}
	}
	return 0
}
