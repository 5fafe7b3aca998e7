package shim

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/shim/client"
)

// dialNode serves a shim's NodeService and connects to it.
func dialNode(t *testing.T, s *Shim) policyv1.NodeServiceClient {
	t.Helper()
	path := filepath.Join(t.TempDir(), "shim.sock")
	must(t, os.WriteFile(path, nil, 0o644)) // What a former process left.
	var err error
	s.socket, err = listenUnix(path)
	must(t, err)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v, %v", info, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s.node.margin = margin
	go func() { defer close(done); s.serveNode(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return policyv1.NewNodeServiceClient(conn)
}

// margin of the tests: that the machine is busy fails no call.
const margin = 10 * time.Second

func await(t *testing.T, c policyv1.NodeServiceClient, iface string, limit time.Duration) *policyv1.PortState {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), margin+limit)
	defer cancel()
	resp, err := c.AwaitPort(ctx, &policyv1.AwaitPortRequest{Interface: iface})
	must(t, err)
	return resp.GetPort()
}

// A port is answered for once it is open, and else with why it is closed.
func TestAwaitPort(t *testing.T) {
	t.Parallel()
	sw, w := newTap(), newWorld(t)
	s := newShim(t, sw, w, t.TempDir())
	begin(t, s)
	c := dialNode(t, s)
	if _, err := c.AwaitPort(context.Background(), &policyv1.AwaitPortRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no interface: %v", err)
	}
	if p := await(t, c, "if-web", 200*time.Millisecond); p != nil {
		t.Errorf("a port that is not there: %v", p)
	}
	ids := map[string]string{"pod-namespace": "x", "pod-name": "web", "attached-mac": macText(mac(1)), "pod-uid": "u1", "ip-addresses": "10.0.0.2"}
	must(t, sw.AddPort(context.Background(), "if-web", ids))
	if p := await(t, c, "if-web", 300*time.Millisecond); !strings.Contains(p.GetReason(), "no state of the policy service") {
		t.Errorf("before a state: %v", p)
	}
	ns := &api.Namespace{Name: "x"}
	must(t, apply(t, s, w, w.cut(ns, pod("other", "10.0.0.9"))))
	if p := await(t, c, "if-web", 300*time.Millisecond); p.GetOpen() || p.GetReason() != "the policy service does not know Pod x/web on this node yet" || p.GetUid() != "u1" || len(p.GetIps()) != 1 {
		t.Errorf("an unknown Pod: %v", p)
	}
	web := func(uid, ip string) *api.Pod { p := pod("web", ip); p.UID = uid; return p }
	for _, tc := range []struct{ uid, ip, why string }{
		{"u2", "10.0.0.2", "its external_ids say Pod UID u1, the state has UID u2"},
		{"u1", "10.0.0.3", "addresses 10.0.0.2 of the interface are not those of the Pod's state: 10.0.0.3"},
	} {
		must(t, apply(t, s, w, w.cut(web(tc.uid, tc.ip))))
		if p := await(t, c, "if-web", 300*time.Millisecond); p.GetOpen() || p.GetReason() != tc.why {
			t.Errorf("want %q, got %v", tc.why, p)
		}
	}
	opened := make(chan *policyv1.PortState, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*margin)
		defer cancel()
		resp, _ := c.AwaitPort(ctx, &policyv1.AwaitPortRequest{Interface: "if-web"})
		opened <- resp.GetPort()
	}()
	s.Hold(context.Background(), []string{"pod/x/web"})
	must(t, apply(t, s, w, w.cut(web("u1", "10.0.0.2"))))
	if p, _ := s.node.port("if-web"); p.GetReason() != "held until other nodes know its address" {
		t.Errorf("a held port: %v", p)
	}
	select {
	case p := <-opened:
		t.Errorf("answered %v for a held port", p)
	default:
	}
	s.Release(context.Background(), []string{"pod/x/web"})
	if p := <-opened; !p.GetOpen() || p.GetReason() != "" {
		t.Errorf("released: %v", p)
	}
	must(t, sw.AddPort(context.Background(), "if-two", ids))
	if p := await(t, c, "if-two", 300*time.Millisecond); p.GetReason() != "Pod x/web has another port: if-web" {
		t.Errorf("a second port: %v", p)
	}
}

// A port of ovs-cni belongs to the Pod of its UID, whatever the Pod's name.
func TestPortOfUIDOpensForItsPod(t *testing.T) {
	t.Parallel()
	sw, w := newTap(), newWorld(t)
	s := newShim(t, sw, w, t.TempDir())
	must(t, sw.AddPort(context.Background(), "veth1", nil))
	sw.SetPortIDs("veth1", map[string]string{"owner": ovsCNI, "contPodUid": "u1", "contNetns": "/nowhere", "contIface": "eth0"})
	begin(t, s)
	p := pod("web", "10.0.0.2")
	p.UID = "u1"
	must(t, apply(t, s, w, w.cut(&api.Namespace{Name: "x"}, p)))
	if p, _ := s.node.port("veth1"); p.GetOpen() || !strings.Contains(p.GetReason(), "/nowhere") {
		t.Errorf("without a MAC: %v", p)
	}
}

// What changes of the ports is told at once.
func TestPortsAreToldWhenTheyChange(t *testing.T) {
	t.Parallel()
	sw, w, objects := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	begin(t, s)
	must(t, apply(t, s, w, w.cut(objects...)))
	for len(s.node.told) > 0 {
		<-s.node.told
	}
	must(t, sw.RemovePort(context.Background(), "if-web"))
	select {
	case <-s.node.told:
	case <-time.After(10 * time.Second):
		t.Fatal("never told")
	}
	if ports := s.Stats().GetPorts(); len(ports) != 1 || !ports[0].GetOpen() {
		t.Errorf("ports: %v", ports)
	}
}

// Pods can be added once a state is in force and the switch can be reached.
func TestStatus(t *testing.T) {
	t.Parallel()
	sw, w, _ := twoPods(t)
	s := newShim(t, sw, w, t.TempDir())
	s.bridge = dataplane{sw}
	var err error
	s.client, err = client.New(client.Config{Addresses: []string{"127.0.0.1:1"}, Node: "node-1", Logger: hclog.NewNullLogger()})
	must(t, err)
	c := dialNode(t, s)
	for _, tc := range []struct {
		do  func()
		why string
	}{
		{func() {}, "no state of the policy service"},
		{sw.Disconnect, "the switch cannot be reached"},
	} {
		tc.do()
		st, err := c.Status(context.Background(), &policyv1.NodeServiceStatusRequest{})
		must(t, err)
		if st.GetReady() || !strings.Contains(st.GetReason(), tc.why) || st.GetNode() != "node-1" {
			t.Errorf("want %q, got %v", tc.why, st)
		}
	}
}

// dataplane is a Fake that needs no setting up.
type dataplane struct{ *tap }

func (dataplane) SetUp(context.Context) error { return nil }
func (dataplane) Run(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}
