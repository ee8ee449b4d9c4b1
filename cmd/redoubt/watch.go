package main

import (
	"context"
	"errors"
	"time"

	tea "charm.land/bubbletea/v2"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// screen is a status on a terminal that updates itself.
type screen struct {
	st      *redoubtv1.Status
	now     time.Time
	palette palette
	render  func(*redoubtv1.Status, time.Time, palette) string
	err     error
}

type (
	news struct{ st *redoubtv1.Status }
	over struct{ err error }
	beat time.Time
)

func tick() tea.Cmd { return tea.Tick(time.Second, func(t time.Time) tea.Msg { return beat(t) }) }

func (s screen) Init() tea.Cmd { return tick() }

func (s screen) Update(m tea.Msg) (tea.Model, tea.Cmd) {
	switch m := m.(type) {
	case news:
		s.st = m.st
	case beat:
		s.now = time.Time(m)
		return s, tick()
	case over:
		s.err = m.err
		return s, tea.Quit
	case tea.KeyPressMsg:
		switch m.String() {
		case "q", "esc", "ctrl+c":
			return s, tea.Quit
		}
	}
	return s, nil
}

func (s screen) View() tea.View {
	text := "waiting for the agent...\n"
	if s.st != nil {
		text = s.render(s.st, s.now, s.palette)
	}
	v := tea.NewView(text + "\n" + s.palette.dim("q to quit"))
	v.AltScreen = true
	return v
}

// watch shows what next returns until next fails or returns nil, or the user quits. stop must make next return.
func watch(
	ctx context.Context, stop func(), p program, render func(*redoubtv1.Status, time.Time, palette) string, next func() (*redoubtv1.Status, error),
) error {
	first := screen{now: time.Now(), palette: palette(p.colour), render: render}
	ui := tea.NewProgram(first, tea.WithContext(ctx), tea.WithInput(p.in), tea.WithOutput(p.out))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			st, err := next()
			if st == nil || err != nil {
				ui.Send(over{err})
				return
			}
			ui.Send(news{st})
		}
	}()
	end, err := ui.Run()
	stop()
	<-done
	if s, ok := end.(screen); ok && s.err != nil {
		return s.err
	}
	if errors.Is(err, tea.ErrProgramKilled) {
		return nil
	}
	return err
}
