// Package manifests is the source of objects that needs no Kubernetes: a folder
// of YAML files, watched.
//
// What goes in: every .yaml, .yml and .json file below the folder, sub-folders
// and symbolic links included, names that begin with a dot left out (so that a
// mounted ConfigMap, whose ..data link is swapped, is read once). What comes out: a
// sequence of Batches of api.Events. The first has everything and is sent even
// if there is nothing; each later one is what differs.
//
//	fsnotify ─┐
//	          ├─► settle (debounce) ─► scan, until two listings agree ─► catalog ─► diff ─► Batch
//	ticker ───┘
//
// Invariants. A batch is read from a folder at rest: a change of many files within the
// debounce arrives as one. A file that cannot be read or decoded as a whole keeps its
// last good content in force, and is told of in the log and by Problems. Of an
// object defined in several files the first path, in lexical order, counts; the
// others are problems, and take effect when the first goes. What is in force
// depends on the files alone, save for the last good content.
//
// Objects are judged beside each other (package validate): one that cannot stand
// beside others alone is not in force, and is a problem. Warnings are logged after
// the batch was handed on, and cost a twentieth of the time at most.
//
// With Config.Versions a batch says of policies, tiers and groups also what
// they are as they are written, in force or not.
//
// If the folder itself cannot be listed, everything stays in force. The owner
// of New calls Run once; Batches and Problems may be used from other goroutines.
//
// Load reads files and folders once, for offline tools.
//
// Read catalog_test.go first, then source_test.go.
package manifests
