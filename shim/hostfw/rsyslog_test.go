package hostfw

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/hostpolicy"
)

// filter is how Antrea's documentation has rsyslog tell lines of the kernel apart.
const filter = `:msg, contains, "Antrea:I:Allow:allow-http" /var/log/antrea-node-netpol-allow.log
:msg, contains, "Antrea:I:Drop:default-drop" /var/log/antrea-node-netpol-drop.log
& stop
`

func TestKernelPrefixes(t *testing.T) {
	for _, c := range []struct {
		l      hostpolicy.List
		action policyv1.Action
		label  string
		want   string
	}{
		{hostpolicy.Ingress, allow, "allow-http", "Antrea:I:Allow:allow-http:"},
		{hostpolicy.Ingress, drop, "default-drop-others", "Antrea:I:Drop:default-drop:"},
		{hostpolicy.Egress, reject, "twelve-chars", "Antrea:O:Reject:twelve-chars:"},
		{hostpolicy.Egress, drop, "", "Antrea:O:Drop:"},
		{hostpolicy.Ingress, reject, "", "Antrea:I:Reject:"},
		{hostpolicy.Ingress, pass, "x", "Antrea:I:Pass:x:"},
	} {
		if got := KernelPrefix(c.l, &hostpolicy.Rule{Action: c.action, LogLabel: c.label}); got != c.want || len(got) > 29 {
			t.Errorf("%q, not %q", got, c.want)
		}
	}
}

// A real rsyslogd, with the documented filter as it stands, sorts lines as the
// kernel writes them with our prefixes.
func TestTheDocumentedFilterSortsOurLines(t *testing.T) {
	daemon := "/usr/sbin/rsyslogd"
	for _, tool := range []string{daemon, "unshare", "mount"} {
		if _, err := exec.LookPath(tool); err != nil || os.Geteuid() != 0 {
			if os.Getenv("WEIR_REQUIRE_DATAPLANE") == "1" {
				t.Fatal("needs root and ", tool)
			}
			t.Skip("needs root and ", tool)
		}
	}
	dir := t.TempDir()
	logs, socket, conf := filepath.Join(dir, "log"), filepath.Join(dir, "socket"), filepath.Join(dir, "rsyslog.conf")
	if err := os.Mkdir(logs, 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("global(workDirectory=%q)\nmodule(load=\"imuxsock\" SysSock.Use=\"off\")\ninput(type=\"imuxsock\" Socket=%q UseSysTimeStamp=\"off\" RateLimit.Interval=\"0\")\n%s*.* %s/rest\n", dir, socket, filter, logs)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	// Its /var/log is a folder of the test's.
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", `mount --bind "$0" /var/log && exec "$@"`, logs, daemon, "-n", "-f", conf, "-i", filepath.Join(dir, "pid"))
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	eventually(t, func() error { _, err := os.Stat(socket); return err }, &out)
	conn, err := net.Dial("unixgram", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	rule := func(action policyv1.Action, label string) *hostpolicy.Rule {
		return &hostpolicy.Rule{Action: action, LogLabel: label}
	}
	for i, prefix := range []string{
		KernelPrefix(hostpolicy.Ingress, rule(allow, "allow-http")), KernelPrefix(hostpolicy.Ingress, rule(drop, "default-drop-others")),
		KernelPrefix(hostpolicy.Egress, rule(drop, "default-drop-others")), KernelPrefix(hostpolicy.Ingress, rule(reject, "")),
	} {
		line := fmt.Sprintf("<4>Sep  2 10:31:0%d node-1 kernel: [665732%d.789675] %sIN=eth0 OUT= SRC=192.0.2.%d DST=192.0.2.200 LEN=60 PROTO=TCP SPT=57658 DPT=80 SYN URGP=0", i, i, prefix, i)
		if _, err := conn.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{"antrea-node-netpol-allow.log": "192.0.2.0", "antrea-node-netpol-drop.log": "192.0.2.1", "rest": "192.0.2.0 192.0.2.2 192.0.2.3"}
	eventually(t, func() error {
		for file, want := range want {
			b, err := os.ReadFile(filepath.Join(logs, file))
			if err != nil {
				return err
			}
			var got []string
			for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
				_, rest, _ := strings.Cut(line, "SRC=")
				got = append(got, strings.Fields(rest + " -")[0])
			}
			if strings.Join(got, " ") != want {
				return fmt.Errorf("%s has %q, not %s", file, b, want)
			}
		}
		return nil
	}, &out)
}

func eventually(t *testing.T, is func() error, output *strings.Builder) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := is()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v\n%s", err, output)
		}
	}
}
