//go:build shortlives

package issuer

import "time"

// MinNodeLifetime lets tests with the real programs see many renewals in a short time. Production coordinators are not built
// like this.
const MinNodeLifetime = 5 * time.Second
