package refusal

import (
	"errors"
	"fmt"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

const (
	// crowdedPause is how soon a machine retries that found no room to wait, or that waits without a stream.
	crowdedPause = time.Minute
	// withheldPause is how soon a node retries that the policy denies a certificate. An approval is announced at once.
	withheldPause = 5 * time.Minute
)

// admission translates errors of the policy's admission; nil for other errors.
func admission(err error) *Refusal {
	var (
		lacking *directory.AdmissionError
		pending *directory.PendingError
		denied  *directory.DeniedError
	)
	switch {
	case errors.As(err, &lacking):
		return &Refusal{Code: redoubtv1.Refusal_CODE_ADMISSION, Message: lacking.Error() + ": " + remedy(lacking)}
	case errors.As(err, &pending):
		name := pending.Code
		if name == "" {
			name = pending.Name
		}
		text := "an administrator has to approve this machine, " + pending.Name
		if pending.Code != "" {
			text += ", code " + pending.Code
		}
		return &Refusal{
			Code: redoubtv1.Refusal_CODE_PENDING, RetryAfter: crowdedPause,
			Message: text + " (redoubt-coordinator node approve " + name + "); then it continues by itself",
		}
	case errors.As(err, &denied):
		why := ""
		if denied.Reason != "" {
			why = " (" + denied.Reason + ")"
		}
		return &Refusal{Code: redoubtv1.Refusal_CODE_DENIED, Message: fmt.Sprintf("an administrator denied this machine, %s, at %s%s; "+
			"ask them: they can still approve it (redoubt-coordinator node approve) or issue another join code",
			denied.Name, denied.At.Format(time.RFC3339), why)}
	case errors.Is(err, directory.ErrCrowded):
		return &Refusal{
			Code: redoubtv1.Refusal_CODE_BUSY, RetryAfter: crowdedPause,
			Message: "too many machines already wait for an administrator's approval; the agent keeps trying",
		}
	case errors.Is(err, directory.ErrReserved):
		return &Refusal{Code: redoubtv1.Refusal_CODE_TOKEN, Message: "the join code is reserved for another machine, which waits for an administrator's " +
			"approval: if that machine is not yours, the code was stolen (redoubt-coordinator node list, node deny, token revoke); ask for a new one"}
	}
	return nil
}

// remedy says what may help a machine to prove enough.
func remedy(e *directory.AdmissionError) string {
	const tpm = "a TPM that the agent can open (`redoubt status` says what is wrong with it)"
	switch {
	case e.Needs == "measured" && e.Has == "tpm":
		return "it takes secure boot, and the log of the boot that the agent can read"
	case e.Has == "tpm-unverified":
		return "the coordinator does not trust the vendor of its TPM; an administrator can add the vendor's CA (redoubt-coordinator serve --tpm-roots)"
	case e.Needs == "x509", e.Needs == "tpm-unverified":
		return "it takes a certificate of the company (redoubt agent --x509-cert, --x509-key) or " + tpm
	case e.Needs == "measured":
		return "it takes " + tpm + ", and secure boot"
	}
	return "it takes " + tpm
}

// Waiting returns the refusal for a node that keeps its certificate but gets no other because of the policy; nil for other
// errors.
func Waiting(err error) *Refusal {
	if !errors.Is(err, directory.ErrAdmission) && !errors.Is(err, directory.ErrPending) && !errors.Is(err, directory.ErrDenied) {
		return nil
	}
	r := admission(err)
	r.RetryAfter = withheldPause
	return r
}

// Unspent returns the refusal. If it is about the machine's admission, it adds that the join code was not used up.
func (r *Refusal) Unspent() *Refusal {
	if r.Code != redoubtv1.Refusal_CODE_ADMISSION {
		return r
	}
	said := *r
	said.Message += "; the join code was not used up"
	return &said
}

// LookAgain makes a node reconnect because something about it has changed.
func LookAgain() *Refusal {
	return &Refusal{Code: redoubtv1.Refusal_CODE_BUSY, Message: "something has changed about this node; connect again", RetryAfter: time.Second}
}
