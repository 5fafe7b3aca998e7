package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	clientportforward "k8s.io/client-go/tools/portforward"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/identity"
)

// kubeCluster is an API server with Weir behind it, as far as weirctl sees of both.
// What it forwards comes by SPDY, in a WebSocket where it has them.
type kubeCluster struct {
	t      *testing.T
	api    *httptest.Server
	pki    string              // Of Weir, see identity.Init.
	pods   map[string]string   // Where their port is; empty: nobody listens there.
	behind map[string][]string // Pods by Service, in their order.
	socket bool                // Whether it has WebSockets.

	mu        sync.Mutex // Guards what follows.
	forbidden []string   // Resources.
	users     []string   // Who asked the API server, by token; each once in a row.
	calls     []caller
	tails     []*auditv1.TailRequest
	lose      bool // The next Tail says no more after two records.
	forwards  []net.Conn
	sockets   int // WebSockets opened.
}

// caller is who called Weir.
type caller struct{ authorization, certificate, method string }

// startKubeCluster starts one with two Pods of each service, of which the policy
// service's first is dead.
func startKubeCluster(t *testing.T) *kubeCluster {
	t.Helper()
	k := &kubeCluster{t: t, pki: t.TempDir(), pods: make(map[string]string), behind: map[string][]string{"weir-policyd": {"policyd-dead", "policyd-0"}, "weir-auditd": {"auditd-0", "auditd-1"}}}
	if _, err := identity.Init(identity.InitConfig{Dir: k.pki, Servers: []string{"weir-policyd.weir-system.svc", "weir-auditd.weir-system.svc"}, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	k.pods["policyd-dead"] = ""
	k.pods["policyd-0"] = k.serve("policyd")
	k.pods["auditd-0"] = k.serve("auditd")
	k.pods["auditd-1"] = k.serve("auditd")
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/namespaces/weir-system/configmaps/weir-ca", k.serveCA)
	mux.HandleFunc("GET /apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices", k.serveSlices)
	mux.HandleFunc("POST /api/v1/namespaces/weir-system/pods/{pod}/portforward", k.servePort)
	mux.HandleFunc("GET /api/v1/namespaces/weir-system/pods/{pod}/portforward", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !k.allowed(w, r, "pods", r.PathValue("pod")):
		case k.socket:
			k.serveSocket(w, r)
		default:
			http.Error(w, "no WebSockets here", http.StatusBadRequest)
		}
	})
	k.api = httptest.NewUnstartedServer(mux)
	k.api.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ClientAuth: tls.RequestClientCert}
	k.api.Config.ConnState = func(conn net.Conn, state http.ConnState) {
		if state == http.StateHijacked {
			k.mu.Lock()
			k.forwards = append(k.forwards, conn)
			k.mu.Unlock()
		}
	}
	k.api.StartTLS()
	t.Cleanup(k.api.Close)
	t.Cleanup(k.cut)
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	return k
}

func (k *kubeCluster) file(name string) string { return filepath.Join(k.pki, name) }

// serve runs one of Weir's services, with its certificate.
func (k *kubeCluster) serve(name string) string {
	k.t.Helper()
	pair, err := tls.LoadX509KeyPair(k.file(name+".crt"), k.file(name+".key"))
	if err != nil {
		k.t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert})))
	policyv1.RegisterInspectionServiceServer(s, &calledInspection{cluster: k})
	auditv1.RegisterAuditServiceServer(s, &calledLog{cluster: k})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		k.t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }()
	k.t.Cleanup(s.Stop)
	return l.Addr().String()
}

// allowed remembers who asks, and refuses what is forbidden.
func (k *kubeCluster) allowed(w http.ResponseWriter, r *http.Request, resource, name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	user := r.Header.Get("Authorization")
	if len(r.TLS.PeerCertificates) > 0 {
		user += "certificate " + r.TLS.PeerCertificates[0].Subject.CommonName
	}
	if n := len(k.users); n == 0 || k.users[n-1] != user {
		k.users = append(k.users, user)
	}
	if !slices.Contains(k.forbidden, resource) {
		return true
	}
	s := apierrors.NewForbidden(schema.GroupResource{Resource: resource}, name, fmt.Errorf("user jane may not")).Status()
	s.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusForbidden)
	_ = json.NewEncoder(w).Encode(s)
	return false
}

func (k *kubeCluster) answer(w http.ResponseWriter, o any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(o); err != nil {
		k.t.Error(err)
	}
}

func (k *kubeCluster) serveCA(w http.ResponseWriter, r *http.Request) {
	if !k.allowed(w, r, "configmaps", "weir-ca") {
		return
	}
	ca, err := os.ReadFile(k.file("ca.crt"))
	if err != nil {
		k.t.Error(err)
	}
	k.answer(w, corev1.ConfigMap{TypeMeta: metav1.TypeMeta{Kind: "ConfigMap", APIVersion: "v1"}, Data: map[string]string{"ca.crt": string(ca)}})
}

func (k *kubeCluster) serveSlices(w http.ResponseWriter, r *http.Request) {
	if !k.allowed(w, r, "endpointslices", "") {
		return
	}
	list := discoveryv1.EndpointSliceList{TypeMeta: metav1.TypeMeta{Kind: "EndpointSliceList", APIVersion: "discovery.k8s.io/v1"}}
	service := strings.TrimPrefix(r.URL.Query().Get("labelSelector"), "kubernetes.io/service-name=")
	grpcName, otherName, port, otherPort, yes, no := "grpc", "webhook", int32(9740), int32(9743), true, false
	if pods, there := k.behind[service]; there && r.PathValue("namespace") == weirNamespace {
		s := discoveryv1.EndpointSlice{Ports: []discoveryv1.EndpointPort{{Name: &otherName, Port: &otherPort}, {Name: &grpcName, Port: &port}},
			Endpoints: []discoveryv1.Endpoint{{Conditions: discoveryv1.EndpointConditions{Ready: &no}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "not-ready"}}}}
		for _, pod := range pods {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Conditions: discoveryv1.EndpointConditions{Ready: &yes}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: pod}})
		}
		list.Items = []discoveryv1.EndpointSlice{s, s} // Of two families.
	}
	k.answer(w, list)
}

func (k *kubeCluster) servePort(w http.ResponseWriter, r *http.Request) {
	if k.allowed(w, r, "pods", r.PathValue("pod")) {
		portforward.ServePortForward(w, r, k, r.PathValue("pod"), "", nil, time.Minute, 10*time.Second, portforward.SupportedProtocols)
	}
}

// serveSocket serves one connection to a Pod.
func (k *kubeCluster) serveSocket(w http.ResponseWriter, r *http.Request) {
	upgrader := websocket.Upgrader{Subprotocols: []string{portforward.WebsocketsSPDYTunnelingPortForwardV1}}
	socket, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		k.t.Error(err)
		return
	}
	accepted := make(chan httpstream.Stream, 2)
	conn, err := spdy.NewServerConnection(clientportforward.NewTunnelingConnection("server", socket), func(s httpstream.Stream, _ <-chan struct{}) error {
		accepted <- s
		return nil
	})
	if err != nil {
		k.t.Error(err)
		return
	}
	defer conn.Close()
	complaints, data := <-accepted, <-accepted
	k.mu.Lock()
	k.sockets++
	k.mu.Unlock()
	if err := k.PortForward(r.Context(), r.PathValue("pod"), "", 9740, data); err != nil {
		_, _ = io.WriteString(complaints, err.Error())
	}
	_ = complaints.Close()
	<-conn.CloseChan()
}

// PortForward implements portforward.PortForwarder.
func (k *kubeCluster) PortForward(ctx context.Context, pod, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	if k.pods[pod] == "" || port != 9740 {
		return fmt.Errorf("port %d of %s: connection refused", port, pod)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", k.pods[pod])
	if err != nil {
		return err
	}
	go func() { _, _ = io.Copy(conn, stream); conn.Close() }()
	_, _ = io.Copy(stream, conn)
	return nil
}

// called remembers who called a service.
func (k *kubeCluster) called(ctx context.Context, method string) {
	c := caller{method: method}
	md, _ := metadata.FromIncomingContext(ctx)
	c.authorization = strings.Join(md["authorization"], " and ")
	p, _ := peer.FromContext(ctx)
	if certs := p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates; len(certs) > 0 {
		c.certificate = certs[0].Subject.CommonName
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, c)
}

// cut breaks all port-forwards.
func (k *kubeCluster) cut() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, conn := range k.forwards {
		conn.Close()
	}
	k.forwards = nil
}

// take returns what was noted since the last time.
func (k *kubeCluster) take() (users []string, calls []caller) {
	k.mu.Lock()
	defer k.mu.Unlock()
	users, calls, k.users, k.calls = k.users, k.calls, nil, nil
	return users, calls
}

type calledInspection struct {
	inspection
	cluster *kubeCluster
}

func (s *calledInspection) ListNodes(ctx context.Context, r *policyv1.ListNodesRequest) (*policyv1.ListNodesResponse, error) {
	s.cluster.called(ctx, "ListNodes")
	return s.inspection.ListNodes(ctx, r)
}

// calledLog has five records, and more of them for ever where it is followed.
type calledLog struct {
	auditv1.UnimplementedAuditServiceServer
	cluster *kubeCluster
}

func (s *calledLog) Tail(r *auditv1.TailRequest, stream auditv1.AuditService_TailServer) error {
	s.cluster.called(stream.Context(), "Tail")
	s.cluster.mu.Lock()
	s.cluster.tails = append(s.cluster.tails, r)
	lose := s.cluster.lose
	s.cluster.lose = false
	s.cluster.mu.Unlock()
	for cursor := r.GetAfter() + 1; cursor <= 5; cursor++ {
		rec := &auditv1.Record{Cursor: cursor, Node: "n1", Event: &auditv1.Event{Kind: &auditv1.Event_Test{Test: &auditv1.TestEvent{Time: timestamppb.Now(), Sink: "siem", Id: fmt.Sprint(cursor)}}}}
		if err := stream.Send(&auditv1.TailResponse{Records: []*auditv1.Record{rec}, Cursor: cursor}); err != nil {
			return err
		}
		if lose && cursor == r.GetAfter()+2 {
			<-stream.Context().Done()
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
	if r.GetFollow() {
		return status.Error(codes.Internal, "the test follows no further")
	}
	return nil
}

// kubeconfig writes a kubeconfig of the cluster for a user.
func (k *kubeCluster) kubeconfig(user *clientcmdapi.AuthInfo) string {
	k.t.Helper()
	c := clientcmdapi.NewConfig()
	c.Clusters["kube"] = &clientcmdapi.Cluster{Server: k.api.URL, CertificateAuthorityData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.api.Certificate().Raw})}
	c.AuthInfos["user"] = user
	c.Contexts["here"] = &clientcmdapi.Context{Cluster: "kube", AuthInfo: "user"}
	c.Contexts["nobody"] = &clientcmdapi.Context{Cluster: "kube"}
	c.CurrentContext = "here"
	path := filepath.Join(k.t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*c, path); err != nil {
		k.t.Fatal(err)
	}
	return path
}

// plugin is a user whose tokens a plugin makes, a new one each time, good for no
// longer than a moment.
func plugin(t *testing.T) *clientcmdapi.AuthInfo {
	t.Helper()
	script := write(t, "plugin", `#!/bin/sh
echo '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "made-'$(date +%s.%N)'", "expirationTimestamp": "2020-01-01T00:00:00Z"}}'
`)
	if err := os.Chmod(script, 0o755); err != nil {
		t.Fatal(err)
	}
	return &clientcmdapi.AuthInfo{Exec: &clientcmdapi.ExecConfig{Command: script, APIVersion: "client.authentication.k8s.io/v1", InteractiveMode: clientcmdapi.NeverExecInteractiveMode}}
}

// TestKubeconfigUser: whoever the kubeconfig says we are, Weir is told, as is the API
// server, however dead the first Pod is.
func TestKubeconfigUser(t *testing.T) {
	k := startKubeCluster(t)
	tokenFile := write(t, "token", "filed\n")
	for _, test := range []struct {
		name string
		user *clientcmdapi.AuthInfo
		args []string
		api  string // Who asks the API server.
		want caller
	}{
		{"token", &clientcmdapi.AuthInfo{Token: "static"}, nil, "Bearer static", caller{authorization: "Bearer static"}},
		{"token of a file", &clientcmdapi.AuthInfo{TokenFile: tokenFile}, nil, "Bearer filed", caller{authorization: "Bearer filed"}},
		{"certificate", &clientcmdapi.AuthInfo{ClientCertificate: k.file("auditd.crt"), ClientKey: k.file("auditd.key")}, nil, "certificate weir auditd", caller{certificate: "weir auditd"}},
		{"a certificate of Weir's", &clientcmdapi.AuthInfo{Token: "static"}, []string{"--cert", k.file("operator.crt"), "--key", k.file("operator.key")}, "Bearer static", caller{certificate: "weir operator"}},
		{"a certificate of Weir's, as nobody", &clientcmdapi.AuthInfo{Token: "static"}, []string{"--context", "nobody", "--cert", k.file("operator.crt"), "--key", k.file("operator.key")}, "", caller{certificate: "weir operator"}},
		{"an address", &clientcmdapi.AuthInfo{Token: "static"}, []string{"--server", k.pods["policyd-0"]}, "Bearer static", caller{authorization: "Bearer static"}},
		{"an authority of our own", &clientcmdapi.AuthInfo{Token: "static"}, []string{"--ca", k.file("ca.crt")}, "Bearer static", caller{authorization: "Bearer static"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := k.kubeconfig(test.user)
			out, errs, code := run(t, append([]string{"get", "nodes", "--kubeconfig", path}, test.args...)...)
			users, calls := k.take()
			test.want.method = "ListNodes"
			if code != 0 || !strings.Contains(out, "bridge is away") || !slices.Equal(users, []string{test.api}) || !slices.Equal(calls, []caller{test.want}) {
				t.Errorf("status %d %s\n%s\nthe API server is asked by %q, Weir by %q", code, errs, out, users, calls)
			}
		})
	}
	t.Run("plugin", func(t *testing.T) {
		t.Setenv("KUBECONFIG", k.kubeconfig(plugin(k.t)))
		_, errs, code := run(t, "get", "nodes")
		users, calls := k.take()
		if code != 0 || len(calls) != 1 || !strings.HasPrefix(calls[0].authorization, "Bearer made-") || slices.Contains(users, calls[0].authorization) || !strings.HasPrefix(users[0], "Bearer made-") {
			t.Errorf("status %d %s\nthe API server is asked by %q, Weir by %q", code, errs, users, calls)
		}
	})
}

// TestKubeconfigWebSocket: where the API server has WebSockets, these are taken.
func TestKubeconfigWebSocket(t *testing.T) {
	k := startKubeCluster(t)
	k.socket = true
	path := k.kubeconfig(&clientcmdapi.AuthInfo{Token: "static"})
	out, errs, code := run(t, "get", "nodes", "--kubeconfig", path)
	if code != 0 || !strings.Contains(out, "bridge is away") || k.sockets == 0 {
		t.Errorf("status %d %s\n%s\n%d WebSockets", code, errs, out, k.sockets)
	}
	k.behind["weir-policyd"] = []string{"policyd-dead"}
	_, errs, code = run(t, "get", "nodes", "--kubeconfig", path)
	if code != 1 {
		t.Errorf("status %d", code)
	}
	holds(t, errs, "port-forward: ", "port 9740 of policyd-dead: connection refused")
}

// TestKubeconfigTail: a stream whose port-forward is lost goes on behind its cursor,
// with the token that is good by then.
func TestKubeconfigTail(t *testing.T) {
	k := startKubeCluster(t)
	for _, test := range []struct {
		name  string
		args  []string
		after []uint64 // Of the calls.
		want  string   // Cursors.
	}{
		{"all", nil, []uint64{0, 2}, "1 2 3 4 5"},
		{"some", []string{"--after", "1", "--limit", "3"}, []uint64{1, 3}, "2 3 4"},
		{"from the end", []string{"--from-end", "--follow"}, []uint64{0, 2}, "1 2 3 4 5"},
	} {
		t.Run(test.name, func(t *testing.T) {
			k.mu.Lock()
			k.lose, k.tails = true, nil
			k.mu.Unlock()
			t.Setenv("KUBECONFIG", k.kubeconfig(plugin(k.t)))
			out, errs := loseForward(t, k, append([]string{"audit", "tail", "-o", "json"}, test.args...)...)
			var cursors []string
			for line := range strings.Lines(out) {
				var rec struct{ Cursor uint64 }
				if err := json.Unmarshal([]byte(line), &rec); err != nil {
					t.Fatal(err)
				}
				cursors = append(cursors, fmt.Sprint(rec.Cursor))
			}
			var after []uint64
			for i, r := range k.tails {
				after = append(after, r.GetAfter())
				if i > 0 && (r.GetFromEnd() || r.GetLimit() != 0 && r.GetLimit() != 1) {
					t.Errorf("the stream goes on by %v", r)
				}
			}
			_, calls := k.take()
			if got := strings.Join(cursors, " "); got != test.want || !slices.Equal(after, test.after) || strings.Count(errs, "going on behind cursor") != 1 {
				t.Errorf("records %s behind %v, want %s behind %v\n%s", got, after, test.want, test.after, errs)
			}
			if len(calls) != 2 || !strings.HasPrefix(calls[0].authorization, "Bearer made-") || calls[0] == calls[1] {
				t.Errorf("calls by %q", calls)
			}
		})
	}
}

// loseForward runs a command, and breaks its port-forwards once two records have
// come.
func loseForward(t *testing.T, k *kubeCluster, args ...string) (out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	two := &lineCount{w: &o, want: 2, reached: k.cut}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	Run(ctx, Streams{Out: two, Err: &e}, args)
	return o.String(), e.String()
}

// lineCount calls reached when so many lines have been written.
type lineCount struct {
	w       io.Writer
	want    int
	reached func()
}

func (c *lineCount) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	before := c.want
	if c.want -= bytes.Count(p, []byte("\n")); before > 0 && c.want <= 0 {
		c.reached()
	}
	return n, err
}

// TestKubeconfigRefuses: what is wrong is said, with what to do about it.
func TestKubeconfigRefuses(t *testing.T) {
	k := startKubeCluster(t)
	k.behind["weir-policyd"], k.behind["weir-auditd"] = []string{"policyd-0"}, nil
	good := k.kubeconfig(&clientcmdapi.AuthInfo{Token: "static"})
	elsewhere := t.TempDir()
	if _, err := identity.Init(identity.InitConfig{Dir: elsewhere, Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	const role = "Role weir-connect of Namespace weir-system permits it: kubectl create rolebinding NAME --namespace weir-system --role weir-connect --user USER"
	for _, test := range []struct {
		name      string
		forbidden string
		args      []string
		want      []string
	}{
		{"no kubeconfig", "", []string{"get", "nodes"}, []string{"there is no kubeconfig: give --kubeconfig or set KUBECONFIG; or say where weir-policyd is by --server HOST:PORT (127.0.0.1:9740 on its own machine)"}},
		{"no kubeconfig for the collector", "", []string{"audit", "stats"}, []string{"where weir-auditd is by --server HOST:PORT (127.0.0.1:9741"}},
		{"no such file", "", []string{"get", "nodes", "--kubeconfig", "/nowhere"}, []string{"kubeconfig: ", "/nowhere: no such file"}},
		{"no such context", "", []string{"get", "nodes", "--kubeconfig", good, "--context", "there"}, []string{`kubeconfig: context "there" does not exist`}},
		{"the authority is forbidden", "configmaps", []string{"get", "nodes", "--kubeconfig", good}, []string{`certificate authority: configmaps "weir-ca" is forbidden`, role}},
		{"the Pods are forbidden", "endpointslices", []string{"get", "nodes", "--kubeconfig", good}, []string{"find the Pods of Service weir-system/weir-policyd: ", role}},
		{"the port-forward is forbidden", "pods", []string{"get", "nodes", "--kubeconfig", good}, []string{"get nodes: weir-policyd of Namespace weir-system does not answer: ", `port-forward to Pod weir-system/policyd-0: pods "policyd-0" is forbidden`, role}},
		{"no Service", "", []string{"get", "nodes", "--kubeconfig", good, "--weir-namespace", "weir-system", "--ca", k.file("ca.crt"), "--weir-namespace", "elsewhere"}, []string{"there is no Service weir-policyd in Namespace elsewhere: give the Namespace that Weir is in by --weir-namespace"}},
		{"no Pod", "", []string{"audit", "stats", "--kubeconfig", good}, []string{"no Pod of Service weir-system/weir-auditd is ready"}},
		{"another authority", "", []string{"get", "nodes", "--kubeconfig", good, "--ca", filepath.Join(elsewhere, "ca.crt")}, []string{"certificate signed by unknown authority"}},
		{"nobody", "", []string{"get", "nodes", "--kubeconfig", good, "--context", "nobody"}, []string{"kubeconfig: the user has neither a token nor a client certificate"}},
		{"a password", "", []string{"get", "nodes", "--kubeconfig", k.kubeconfig(&clientcmdapi.AuthInfo{Username: "jane", Password: "x"})}, []string{"kubeconfig: the user has a password"}},
		{"another's name", "", []string{"get", "nodes", "--kubeconfig", k.kubeconfig(&clientcmdapi.AuthInfo{Token: "static", Impersonate: "jane"})}, []string{"kubeconfig: the user impersonates another"}},
		{"without TLS", "", []string{"get", "nodes", "--kubeconfig", good, "--insecure"}, []string{"--insecure needs --server"}},
		{"the kubeconfig's user without TLS", "", []string{"get", "nodes", "--kubeconfig", good, "--insecure", "--server", "127.0.0.1:1"}, []string{"--insecure needs --server and no kubeconfig"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			k.mu.Lock()
			k.forbidden = []string{test.forbidden}
			k.mu.Unlock()
			out, errs, code := run(t, test.args...)
			if code != 1 || out != "" {
				t.Errorf("status %d\n%s", code, out)
			}
			holds(t, errs, test.want...)
		})
	}
	if _, calls := k.take(); len(calls) > 0 {
		t.Errorf("Weir was called by %v", calls)
	}
}
