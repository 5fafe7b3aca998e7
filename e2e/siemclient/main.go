// Command siemclient prints Weir's audit record, a JSON object a line, and goes on
// where it was when it comes back. It is the example of README.md's SIEM section.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"log"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/encoding/protojson"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

func main() {
	server := flag.String("server", "localhost:9741", "the collector, HOST:PORT")
	pki := flag.String("pki", "pki/operator", "certificate and key without .crt and .key; an operator's or a reader's")
	ca := flag.String("ca", "pki/ca.crt", "certificate authority")
	file := flag.String("cursor", "cursor", "file that keeps how far we are")
	flag.Parse()
	roots, own := x509.NewCertPool(), must(tls.LoadX509KeyPair(*pki+".crt", *pki+".key"))
	roots.AppendCertsFromPEM(must(os.ReadFile(*ca)))
	creds := credentials.NewTLS(&tls.Config{RootCAs: roots, Certificates: []tls.Certificate{own}})
	client := auditv1.NewAuditServiceClient(must(grpc.NewClient(*server, grpc.WithTransportCredentials(creds))))
	for ; ; time.Sleep(time.Second) {
		log.Print("the stream ended: ", follow(client, *file))
	}
}

func follow(client auditv1.AuditServiceClient, file string) error {
	text, _ := os.ReadFile(file)                        // None: from the beginning.
	after, _ := strconv.ParseUint(string(text), 10, 64) // Zero for an empty text.
	stream, err := client.Tail(context.Background(), &auditv1.TailRequest{After: after, Follow: true})
	if err != nil {
		return err
	}
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		if r.GetSkipped() > 0 {
			log.Printf("%d records are not there any more", r.GetSkipped())
		}
		if r.GetRecord() != nil { // Otherwise the cursor alone.
			must(fmt.Println(string(must(protojson.Marshal(r.GetRecord())))))
		}
		// Behind the line: killed between the two, we print it again; none is lost.
		must(0, os.WriteFile(file+".new", strconv.AppendUint(nil, r.GetCursor(), 10), 0o600))
		must(0, os.Rename(file+".new", file))
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}
