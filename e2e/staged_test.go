package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/e2e/harness"
	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	"github.com/weirnet/weir/services/policy/api"
)

// inStage annotates the policies of manifests as staged.
func inStage(manifests string) string {
	return strings.Replace(manifests, "metadata: {", "metadata: {annotations: {weir.dev/enforcement: staged}, ", 1)
}

const letIn = `---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: let-in}
spec:
  priority: 1
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: nginx}}}}
  ingress: [{name: from-remote, action: Allow, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: remote}}}}]}]
`

// stagedRecord is a record's part that tells of both worlds.
type stagedRecord struct {
	Action, Reason, AppliedTo string
	SourcePort                int
	Isolation                 bool
	Policies                  []string
	Staged                    *struct {
		Action, Policy, Rule string
		Policies             []string
	}
}

// both is what was done and what would have been, in words.
func (r stagedRecord) both() string {
	text := fmt.Sprintf("%s to %s by %v (%s)", r.Action, r.AppliedTo, r.Policies, r.Reason)
	if s := r.Staged; s != nil {
		text += fmt.Sprintf(", staged %s for %s %s by %v", s.Action, s.Policy, s.Rule, s.Policies)
	}
	return text
}

// stagedRecords are the records of the JSON file, by source port.
func stagedRecords(t *testing.T, c *harness.Cluster) map[int][]stagedRecord {
	t.Helper()
	text, err := os.ReadFile(c.JSONLog())
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	out := make(map[int][]stagedRecord)
	for line := range strings.Lines(string(text)) {
		var r struct{ Packet *stagedRecord }
		if json.Unmarshal([]byte(line), &r) == nil && r.Packet != nil {
			out[r.Packet.SourcePort] = append(out[r.Packet.SourcePort], *r.Packet)
		}
	}
	return out
}

// Staged policies do not act; what they would change is recorded with both
// verdicts, and nothing else is. Enforced, they act.
func TestStagedPoliciesAreRecordedOnly(t *testing.T) {
	t.Parallel()
	c := smallCluster(t)
	shut := policy("shut-nginx", "{podSelector: {matchLabels: {app: nginx}}, ingress: []}")
	also := policy("also-shut", "{podSelector: {matchLabels: {app: nginx}}, ingress: []}")
	const isolated = "drop to default/nginx by [K8sNetworkPolicy:default/shut-nginx]"
	for _, tc := range []struct {
		name, objects string
		port          uint16
		outcome       string
		record        string // Of the JSON file; none where it is empty.
		printed       bool   // In np.log.
	}{
		{"a staged isolation", smallObjects(false) + inStage(shut), 11111, harness.Allow,
			"allow to default/nginx by [] (staged), staged drop for K8sNetworkPolicy:default/shut-nginx  by [K8sNetworkPolicy:default/shut-nginx]", false},
		{"enforced", smallObjects(false) + shut, 11112, harness.Drop, "", false},
		{"with another that agrees", smallObjects(false) + shut + inStage(also), 11113, harness.Drop, "", false},
		{"a staged admin policy over it", smallObjects(false) + shut + inStage(letIn), 11114, harness.Drop,
			isolated + " (staged), staged allow for AdminNetworkPolicy:let-in from-remote by [AdminNetworkPolicy:let-in]", false},
		{"the same where isolation is logged", smallObjects(true) + shut + inStage(letIn), 11115, harness.Drop,
			isolated + " (isolation), staged allow for AdminNetworkPolicy:let-in from-remote by [AdminNetworkPolicy:let-in]", true},
		{"that admin policy enforced", smallObjects(false) + shut + letIn, 11116, harness.Allow, "", false},
		{"a staged isolation of what it allows", smallObjects(false) + inStage(shut) + letIn, 11117, harness.Allow, "", false},
		{"nothing staged but the isolation, logged", smallObjects(true) + shut + inStage(also), 11118, harness.Drop, isolated + " (isolation)", true},
	} {
		set(t, c, tc.objects)
		outcomes(t, []harness.Probe{{From: c.Pod("default/remote"), To: ip("10.9.1.2"), Protocol: api.ProtocolTCP, Port: 80, SourcePort: tc.port}}, tc.outcome)
		if tc.record == "" {
			continue // Seen to be so when a later record of the node is there.
		}
		eventually(t, func() error {
			got := stagedRecords(t, c)[int(tc.port)]
			if len(got) == 0 {
				return fmt.Errorf("%s: no record", tc.name)
			}
			for _, r := range got { // Repeats of the packet may have lines of their own.
				if r.both() != tc.record {
					return fmt.Errorf("%s: the record is %q, want %q", tc.name, r.both(), tc.record)
				}
			}
			return nil
		})
		eventually(t, func() error {
			text, err := os.ReadFile(c.NPLog("node-1"))
			if err != nil && !os.IsNotExist(err) {
				return err
			}
			if printed := strings.Contains(string(text), fmt.Sprintf(" %d 10.9.1.2 80 ", tc.port)); printed != tc.printed {
				return fmt.Errorf("%s: in np.log: %t\n%s", tc.name, printed, text)
			}
			return nil
		})
	}
	for port, records := range stagedRecords(t, c) {
		if slices.Contains([]int{11112, 11113, 11116, 11117}, port) {
			t.Errorf("recorded, where the worlds agree: %s", records[0].both())
		}
	}
	if ports := tailStaged(t, c); !slices.Equal(ports, []uint32{11111, 11114, 11115}) {
		t.Errorf("the records that staged policies would change are of the source ports %v", ports)
	}
}

// tailStaged asks the collector for what staged policies would change, and
// returns the source ports.
func tailStaged(t *testing.T, c *harness.Cluster) (ports []uint32) {
	t.Helper()
	stream, err := c.Audit().Tail(t.Context(), &auditv1.TailRequest{Filter: &auditv1.RecordFilter{Staged: true, Losses: true}})
	must(t, err)
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			slices.Sort(ports)
			return slices.Compact(ports)
		}
		must(t, err)
		if p := resp.GetRecord().GetEvent().GetPacket(); p != nil {
			ports = append(ports, p.GetSourcePort())
		}
	}
}

// While policies are staged and taken back, new connections come and go between
// Pods that they are about, and not one packet is lost.
func TestStagingLosesNoPacket(t *testing.T) {
	t.Parallel()
	c := smallCluster(t)
	set(t, c, smallObjects(false))
	server := listen(t, c.Pod("default/nginx"))
	stop, ended := make(chan struct{}), make(chan error, 1)
	tries := 0
	go func() {
		ended <- c.Pod("default/client").NS.Do(func() error {
			for ; ; tries++ {
				select {
				case <-stop:
					return nil
				default:
				}
				if err := echo(server.addr, fmt.Sprint(tries)); err != nil {
					return fmt.Errorf("connection %d: %w", tries, err)
				}
			}
		})
	}()
	policies := []string{
		inStage(policy("shut", "{podSelector: {}, policyTypes: [Ingress, Egress]}")),
		inStage(policy("other", "{podSelector: {matchLabels: {app: nginx}}, ingress: [{from: [{podSelector: {matchLabels: {app: none}}}]}]}")),
		inStage(strings.Replace(letIn, "action: Allow", "action: Deny", 1)),
	}
	for round := range 12 {
		objects := smallObjects(false)
		for i, p := range policies {
			if (round+1)>>i&1 == 1 {
				objects += p
			}
		}
		set(t, c, objects)
	}
	close(stop)
	must(t, <-ended)
	if tries < 500 {
		t.Errorf("%d connections only", tries)
	}
	t.Logf("%d connections", tries)
	eventually(t, func() error { // And they were judged.
		if len(tailStaged(t, c)) == 0 {
			return errors.New("no record of what the staged policies would do")
		}
		return nil
	})
}

// echo sends a datagram from a new port and waits for the answer.
func echo(to netip.Addr, word string) error {
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, blastPort)))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte(word)); err != nil {
		return err
	}
	buf := make([]byte, 64)
	n, err := conn.Read(buf)
	if err == nil && string(buf[:n]) != word {
		err = fmt.Errorf("the answer is %q", buf[:n])
	}
	return err
}
