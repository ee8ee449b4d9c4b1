package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/redoubt-mesh/redoubt/coordinator/issuer"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// keys returns the directory with the keys.
func (p *program) keys() string { return filepath.Join(p.data, "pki") }

func (p *program) rootExport() *cobra.Command {
	var offline bool
	var secret string
	cmd := &cobra.Command{
		Use: "export --offline FILE", Short: "Move the root's private key off this machine", Args: cobra.ExactArgs(1),
		Long: `Writes the root's key to FILE, sealed with a passphrase (the format of the tool
age), reads it back, and only then removes the key from the coordinator's data.
From then on the coordinator asks for its intermediates ('root request'), and
the key never has to come back. Keep two copies of FILE, and the passphrase
apart from them: without them the mesh ends with its intermediate.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !offline {
				return errors.New("root export removes the private key from this machine: confirm that with --offline")
			}
			return p.exportRoot(cmd, args[0], secret)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&offline, "offline", false, "confirm that the private key leaves this machine")
	passphraseFlag(f, &secret)
	return cmd
}

type stringVar interface {
	StringVar(p *string, name, value, usage string)
}

func passphraseFlag(f stringVar, secret *string) {
	f.StringVar(secret, "passphrase-file", "", "`FILE` whose first line is the passphrase, '-' for standard input (default: ask on the terminal)")
}

func (p *program) exportRoot(cmd *cobra.Command, name, secret string) error {
	if err := fresh(name); err != nil {
		return err
	}
	root, digest, err := issuer.ReadRoot(p.keys())
	if err != nil {
		return err
	}
	// Check that the coordinator can be reached before anything is written.
	if _, err := p.client().GetRoots(cmd.Context(), &redoubtv1.GetRootsRequest{}); err != nil {
		return p.explain(err)
	}
	passphrase, err := p.passphrase(secret, true)
	if err != nil {
		return err
	}
	if err := p.seal(name, root, passphrase); err != nil {
		return err
	}
	if _, err := p.client().ForgetRootKey(cmd.Context(), &redoubtv1.ForgetRootKeyRequest{Digest: digest[:]}); err != nil {
		return fmt.Errorf("%s is good, but the key is still on this machine: %w", name, p.explain(err))
	}
	fingerprint := fmt.Sprintf("%x", cert.Fingerprint(root.Certificate()))
	if p.json {
		return p.print(map[string]any{"file": name, "root": fingerprint})
	}
	fmt.Fprintf(p.out, `The key of root %.16s is in %s, and no longer on this machine
(old backups of %s may still have it).
Put two copies of the file where they are safe, and remove it here. For the
next intermediate, when 'root list' says so:
  here                  redoubt-coordinator root request REQUEST
  where the key is      redoubt-coordinator root sign --key %s REQUEST --out ANSWER
  here                  redoubt-coordinator root install ANSWER
`, fingerprint, name, p.keys(), filepath.Base(name))
	return nil
}

// seal writes a root's key to a file, and succeeds only if the key can be read back from that file.
func (p *program) seal(name string, root *cert.Authority, passphrase string) error {
	sealed, err := issuer.Seal(root, passphrase)
	if err != nil {
		return err
	}
	if err := p.write(name, sealed); err != nil {
		return err
	}
	back, err := p.unseal(name, passphrase)
	if err == nil && !back.Certificate().Equal(root.Certificate()) {
		err = errors.New("it holds another key")
	}
	if err != nil {
		return fmt.Errorf("%s cannot be read back, the key stays where it was: %w", name, err)
	}
	return nil
}

func (p *program) unseal(name, passphrase string) (*cert.Authority, error) {
	b, err := p.read(name)
	if err != nil {
		return nil, err
	}
	root, err := issuer.Unseal(b, passphrase)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return root, nil
}

// passphrase reads a passphrase from file or, if that is empty, from the terminal; a new one (choose) must be typed twice.
func (p *program) passphrase(file string, choose bool) (string, error) {
	if file != "" {
		b, err := p.read(file)
		if err != nil {
			return "", err
		}
		line, _, _ := strings.Cut(string(b), "\n")
		return strings.TrimSuffix(line, "\r"), nil
	}
	in, ok := p.in.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return "", errors.New("there is no terminal to ask for a passphrase on: use --passphrase-file FILE")
	}
	ask := func(what string) (string, error) {
		fmt.Fprint(p.err, what)
		defer fmt.Fprintln(p.err)
		b, err := term.ReadPassword(int(in.Fd()))
		return string(b), err
	}
	first, err := ask("Passphrase of the root's key: ")
	if err != nil || !choose {
		return first, err
	}
	if len(first) < issuer.MinPassphrase {
		return "", fmt.Errorf("the passphrase has %d characters: want %d or more", len(first), issuer.MinPassphrase)
	}
	again, err := ask("Repeat the passphrase: ")
	if err == nil && again != first {
		err = errors.New("the passphrases differ")
	}
	return first, err
}

// signOptions are the flags of root sign.
type signOptions struct {
	key, next, out, secret string
	lifetime               time.Duration
}

func (p *program) rootSign() *cobra.Command {
	o := signOptions{lifetime: issuer.IntermediateLifetime}
	cmd := &cobra.Command{
		Use: "sign REQUEST", Short: "Sign a coordinator's request, on the machine with the root's key", Args: cobra.ExactArgs(1),
		Long: `Signs the intermediate that a coordinator asked for with 'root request', using
the key that 'root export --offline' wrote. Needs neither a coordinator nor a
network. With --new-root it also creates a new root, which replaces the old one
when the answer is installed.`,
		Example: "  redoubt-coordinator root sign --key root.age request.pem --out answer.pem",
		RunE:    func(_ *cobra.Command, args []string) error { return p.signRequest(args[0], o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.key, "key", "", "`FILE` with the root's key, written by root export --offline")
	f.StringVar(&o.next, "new-root", "", "create a new root, and store its key in `FILE` with the same passphrase")
	f.StringVar(&o.out, "out", "-", "`FILE` for the answer")
	f.DurationVar(&o.lifetime, "lifetime", o.lifetime, "lifetime of the intermediate certificate, up to 8784h")
	passphraseFlag(f, &o.secret)
	_ = cmd.MarkFlagRequired("key")
	return cmd
}

func (p *program) signRequest(request string, o signOptions) error {
	b, err := p.read(request)
	if err != nil {
		return err
	}
	asked, err := issuer.ParseRequest(b)
	if err != nil {
		return fmt.Errorf("%s: %w", request, err)
	}
	if o.next != "" {
		if err := fresh(o.next); err != nil {
			return err
		}
	}
	passphrase, err := p.passphrase(o.secret, false)
	if err != nil {
		return err
	}
	root, err := p.unseal(o.key, passphrase)
	if err != nil {
		return err
	}
	config := issuer.Config{Clock: time.Now, Rand: rand.Reader, IntermediateLifetime: o.lifetime}
	var answer []byte
	if o.next == "" {
		answer, err = asked.Sign(root, config)
	} else {
		var s issuer.Succession
		if s, answer, err = asked.Succeed(root, config); err == nil {
			err = p.seal(o.next, s.Root, passphrase)
		}
	}
	if err != nil {
		return err
	}
	if err := p.write(o.out, answer); err != nil {
		return err
	}
	if p.json && o.out != "-" {
		return p.print(map[string]any{"mesh": asked.Mesh, "key": fmt.Sprintf("%x", asked.Key), "answer": o.out})
	}
	fmt.Fprintf(p.err, "# signed for mesh %s, key %.16x\n# on the coordinator: redoubt-coordinator root install %s\n", asked.Mesh, asked.Key, o.out)
	return nil
}
