package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// ticks is the unit of CPU times in /proc, USER_HZ, which is 100 on every architecture that Go runs on.
const ticks = 100

// cpuSeconds returns the user and system time of processes so far.
func cpuSeconds(pids []int) (total float64) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// The program's name, in parentheses, may contain spaces; count the fields after it.
		_, rest, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(rest)
		for _, i := range []int{11, 12} {
			n, _ := strconv.ParseFloat(f[i], 64)
			total += n / ticks
		}
	}
	return total
}

// peakRSS returns the largest resident memory that any of the processes has had, in MB.
func peakRSS(pids []int) (peak float64) {
	for _, pid := range pids {
		peak = max(peak, memory(pid, "VmHWM:"))
	}
	return peak
}

// rss returns the resident memory of a process, in MB.
func rss(pid int) float64 { return memory(pid, "VmRSS:") }

func memory(pid int, field string) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == field {
			kb, _ := strconv.ParseFloat(f[1], 64)
			return kb * 1024 / 1e6
		}
	}
	return 0
}

func median[T any](all []T, f func(T) float64) float64 {
	var v []float64
	for _, x := range all {
		v = append(v, f(x))
	}
	slices.Sort(v)
	if len(v) == 0 {
		return 0
	}
	if len(v)%2 == 1 {
		return v[len(v)/2]
	}
	return (v[len(v)/2-1] + v[len(v)/2]) / 2
}
