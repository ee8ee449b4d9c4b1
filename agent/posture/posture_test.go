package posture

import (
	"runtime"
	"strings"
	"testing"
)

func TestOSVersion(t *testing.T) {
	v := OSVersion()
	if runtime.GOOS == "linux" && v == "" {
		t.Error("a Linux machine does not know its kernel")
	}
	if v != clean(v) {
		t.Errorf("%q could be no fact", v)
	}
}

func TestWhatCannotBeAFactIsNone(t *testing.T) {
	for in, want := range map[string]string{
		"6.12.9-amd64\n": "6.12.9-amd64", "": "", "a\x00b": "", strings.Repeat("x", maxText+1): "", "\xff": "",
	} {
		if got := clean(in); got != want {
			t.Errorf("%.20q becomes %q, want %q", in, got, want)
		}
	}
}
