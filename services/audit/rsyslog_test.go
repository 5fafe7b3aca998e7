package audit

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/leodido/go-syslog/v4/rfc5424"
)

// TestRsyslog: a real rsyslogd takes the records over UDP and TCP; what it
// writes, raw, parses, and is what was reported.
func TestRsyslog(t *testing.T) {
	t.Parallel()
	daemon := rsyslogd(t)
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			port := freePort(t, network)
			written := startRsyslog(t, daemon, network, port, "")
			c := start(t, func(c *Config) { c.Syslog = []string{fmt.Sprintf("%s://127.0.0.1:%d", network, port)} })
			s := c.report("n1", "b1")
			s.batch(1, allow(2), drop(7), drop(7), lossEvent(5))
			s.acked(4)
			var lines []string
			eventually(t, "three messages", func() bool {
				b, _ := os.ReadFile(written)
				lines = strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
				return strings.Count(string(b), "\n") >= 3
			})
			found := map[string]map[string]string{}
			for _, line := range lines {
				m, err := rfc5424.NewParser().Parse([]byte(line))
				if err != nil {
					t.Fatalf("%v: %s", err, line)
				}
				msg := m.(*rfc5424.SyslogMessage)
				if *msg.Hostname != "n1" || *msg.Appname != "weir" || *msg.Facility != 16 {
					t.Errorf("%s", line)
				}
				sd := (*msg.StructuredData)["weir@32473"]
				found[*msg.MsgID+sd["action"]] = sd
			}
			if d := found["PACKETdrop"]; d["count"] != "2" || d["policies"] != "K8sNetworkPolicy:shop/default-deny,K8sNetworkPolicy:shop/only-api" ||
				d["sourceIP"] != "10.0.1.5" || d["destinationPort"] != "5432" || d["appliedTo"] != "shop/db" || d["isolation"] != "true" {
				t.Errorf("drop: %v", d)
			}
			if a := found["PACKETallow"]; a["policies"] != "K8sNetworkPolicy:shop/allow-web" {
				t.Errorf("allow: %v", a)
			}
			if l := found["LOSS"]; l["count"] != "5" || l["stage"] != "meter" {
				t.Errorf("loss: %v", l)
			}
		})
	}
}

// rsyslogd finds it.
func rsyslogd(t *testing.T) string {
	t.Helper()
	daemon, err := exec.LookPath("rsyslogd")
	if err != nil {
		if daemon = "/usr/sbin/rsyslogd"; !executable(daemon) {
			if os.Getenv("WEIR_REQUIRE_DATAPLANE") == "1" {
				t.Fatal("rsyslogd is not installed")
			}
			t.Skip("rsyslogd is not installed")
		}
	}
	return daemon
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&0o111 != 0
}

func freePort(t *testing.T, network string) int {
	t.Helper()
	if network == "udp" {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.LocalAddr().(*net.UDPAddr).Port
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// startRsyslog runs an rsyslogd of our own, and returns the file that it writes
// what it receives to. TLS is what configures the input's driver.
func startRsyslog(t *testing.T, daemon, network string, port int, tls string) string {
	t.Helper()
	dir := t.TempDir()
	written := filepath.Join(dir, "received")
	global, module, _ := strings.Cut(tls, "\n")
	conf := fmt.Sprintf(`global(workDirectory=%q)
%[5]s
module(load="im%[2]s" %[6]s)
template(name="raw" type="string" string="%%rawmsg%%\n")
input(type="im%[2]s" address="127.0.0.1" port="%[3]d" ruleset="weir")
ruleset(name="weir") { action(type="omfile" file=%[4]q template="raw") }
`, dir, network, port, written, global, module)
	path := filepath.Join(dir, "rsyslog.conf")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd := exec.Command(daemon, "-n", "-f", path, "-i", filepath.Join(dir, "pid"))
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(out.String())
		}
	})
	eventually(t, "rsyslogd to listen", func() bool {
		if network == "udp" {
			// Binding the port to see whether it is taken would take it away.
			sockets, _ := os.ReadFile("/proc/net/udp")
			return strings.Contains(string(sockets), fmt.Sprintf(" 0100007F:%04X ", port))
		}
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return written
}
