package e2e

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestHangup sends SIGHUP to daemons that are still starting: they wait for the
// content of a file. None ends by it, and the collector then opens its files anew.
func TestHangup(t *testing.T) {
	requireDataplane(t)
	for _, tt := range []struct {
		daemon string
		args   []string // The last names the file.
		text   string   // Its content.
		want   string   // In what the daemon says.
	}{
		{"weir-auditd", []string{"--metrics-listen", "", "--min-free", "1", "--np-log-dir", "", "--dir", "log", "--listen", "127.0.0.1:0", "--sinks"}, "sinks: []\n", "opening files anew"},
		{"weir-policyd", []string{"--metrics-listen", "", "--listen", "127.0.0.1:0", "--manifests", ".", "--cert", "cert", "--key", "key", "--ca"}, "nothing", "file holds no PEM certificate"},
		{"weir-shim", []string{"--node", "n1", "--policy-server", "127.0.0.1:1", "--state-dir", ".", "--ca", "ca", "--key", "key", "--cert"}, "nothing", "failed to find any PEM data"},
	} {
		t.Run(tt.daemon, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "file")
			must(t, syscall.Mkfifo(path, 0o600))
			must(t, os.WriteFile(filepath.Join(dir, "key"), nil, 0o600)) // Read beside the certificate.
			cmd := exec.CommandContext(t.Context(), filepath.Join(bin, tt.daemon), append(tt.args, path)...)
			cmd.Dir = dir
			stderr, err := cmd.StderrPipe()
			must(t, err)
			must(t, cmd.Start())
			file, err := os.OpenFile(path, os.O_WRONLY, 0) // Returns when the daemon reads.
			must(t, err)
			must(t, cmd.Process.Signal(syscall.SIGHUP))
			_, err = file.WriteString(tt.text)
			must(t, err)
			must(t, file.Close())
			said := bufio.NewScanner(stderr)
			for found := false; !found && said.Scan(); {
				t.Log(said.Text())
				found = strings.Contains(said.Text(), tt.want)
			}
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_, _ = io.Copy(io.Discard, stderr)
			err = cmd.Wait()
			if !strings.Contains(said.Text(), tt.want) {
				t.Errorf("it does not say %q: %v", tt.want, err)
			}
		})
	}
}
