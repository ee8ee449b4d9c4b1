package acl

import "testing"

func TestStarterIsClean(t *testing.T) {
	p, diags := Check("starter.hujson", Starter, fuzzTime)
	if p == nil || len(diags) > 0 {
		t.Fatalf("the starter policy is not clean:\n%s", diags.Format("starter.hujson"))
	}
}
