package server

import (
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"testing"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// TestWhoInspects: operators and the services; neither nodes nor those who read
// the audit record of some Namespaces.
func TestWhoInspects(t *testing.T) {
	for _, tt := range []struct {
		uris []string
		ok   bool
	}{
		{[]string{"weir://role/operator"}, true},
		{[]string{"weir://role/policyd"}, true},
		{[]string{"weir://node/n1"}, false},
		{[]string{"weir://role/reader", "weir://namespace/shop"}, false},
	} {
		cert := &x509.Certificate{}
		for _, s := range tt.uris {
			u, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			cert.URIs = append(cert.URIs, u)
		}
		ctx := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{cert}}}}})
		if err := CertifiedInspector(ctx); (err == nil) != tt.ok {
			t.Errorf("%v: %v", tt.uris, err)
		}
	}
}
