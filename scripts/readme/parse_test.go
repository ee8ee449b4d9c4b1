package readme

import (
	"fmt"
	"slices"
	"strings"
)

// hosts are the machines in README.md; everywhere lists those that an sh block is for.
var (
	hosts      = []string{"vm", "laptop", "server", "new-vm"}
	everywhere = []string{"vm", "laptop", "server", "new-vm"}
)

// step is one thing that README.md tells a person to do.
type step struct {
	line    int
	hosts   []string
	clone   bool // in a clone of the repository
	command string
	want    string // output shown below the command
	file    string // a file to write, instead of a command
	content string
}

// parse returns the steps of a README in order.
func parse(text string) ([]step, error) {
	var steps []step
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		info, ok := strings.CutPrefix(lines[i], "```")
		if !ok {
			continue
		}
		begin := i + 1
		end := slices.Index(lines[begin:], "```")
		if end < 0 {
			return nil, fmt.Errorf("line %d: a block without an end", begin)
		}
		i = begin + end
		found, err := block(info, begin+1, lines[begin:i])
		if err != nil {
			return nil, err
		}
		steps = append(steps, found...)
	}
	return place(steps)
}

// block reads one fenced block, whose first line is line n.
func block(info string, n int, lines []string) ([]step, error) {
	language, name, _ := strings.Cut(info, " ")
	switch {
	case info == "text":
		return nil, nil
	case info == "sh":
		return shell(n, lines), nil
	case info == "console":
		return console(n, lines)
	case language == "jsonc" && name != "":
		return []step{{line: n, file: name, content: strings.Join(lines, "\n") + "\n"}}, nil
	}
	return nil, fmt.Errorf("line %d: a block of %q: want sh, console, text or jsonc with the name of a file", n, info)
}

func shell(n int, lines []string) (steps []step) {
	for i, l := range lines {
		l, _, _ = strings.Cut(l, "  # ")
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "#") {
			steps = append(steps, step{line: n + i, hosts: everywhere, clone: true, command: l})
		}
	}
	return steps
}

func console(n int, lines []string) (steps []step, err error) {
	for i, l := range lines {
		host, command, ok := strings.Cut(l, "$ ")
		switch {
		case ok && slices.Contains(hosts, host):
			steps = append(steps, step{line: n + i, hosts: []string{host}, command: command})
		case ok && host != "" && !strings.Contains(host, " "):
			return nil, fmt.Errorf("line %d: there is no host %q", n+i, host)
		case len(steps) == 0:
			return nil, fmt.Errorf("line %d: %q: want HOST$ COMMAND first", n+i, l)
		default:
			steps[len(steps)-1].want += l + "\n"
		}
	}
	return steps, nil
}

// place assigns each file the host of the next command.
func place(steps []step) ([]step, error) {
	for i, s := range steps {
		if s.file == "" {
			continue
		}
		next := slices.IndexFunc(steps[i:], func(s step) bool { return s.command != "" })
		if next < 0 {
			return nil, fmt.Errorf("line %d: no command follows that could need %s", s.line, s.file)
		}
		steps[i].hosts = steps[i+next].hosts
	}
	return steps, nil
}
