// Package credentials is how a shim shows which node it is, and which servers it
// believes.
//
// Either by files of a PKI, which are read again for each connection; or by the
// service-account token of its Pod, for which the policy service gives a
// short-lived certificate (Token). That is renewed after two thirds of its life,
// and kept in a folder, so that a shim which starts while the policy service is
// away still reaches the collector.
//
// What is used is decided at each handshake, so that a renewed certificate needs
// no restart. A server must have a certificate of the authority, for the name
// that is dialled.
//
// Used by the root of the shim. Read token_test.go first.
package credentials
