// Command weir-cni is the CNI plugin: it puts Pods onto the bridge, and says so
// once policies cover them.
package main

import "github.com/weirnet/weir/shim/cni"

func main() { cni.Main() }
