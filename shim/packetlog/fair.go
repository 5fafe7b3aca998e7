package packetlog

// fair is a queue of values of several classes, in the order in which they came.
// What is to go where there are too many is the oldest of the class that has
// most: so a flood of one class costs no other anything as long as that has
// less. Every operation takes the same time, however many there are.
type fair[T any] struct {
	first, last *waiting[T] // All, the oldest first.
	lines       map[uint32]*line[T]
	byLength    []*line[T] // The lines of each length; the longest are last.
	n           int
	spare       *waiting[T] // Taken out, for those that come; linked by after.
}

// waiting is a value in the queue and in its class's line.
type waiting[T any] struct {
	value         T
	line          *line[T]
	before, after *waiting[T]
	next          *waiting[T] // In the line.
}

// line is what waits of one class, of which there is something.
type line[T any] struct {
	class       uint32
	n           int
	first, last *waiting[T]
	left, right *line[T] // Among those of the same length.
}

func newFair[T any]() *fair[T] { return &fair[T]{lines: make(map[uint32]*line[T])} }

// push puts a value at the end.
func (f *fair[T]) push(class uint32, v T) {
	w := f.spare
	if w == nil {
		w = new(waiting[T])
	} else {
		f.spare = w.after
	}
	l := f.lines[class]
	if l == nil {
		l = &line[T]{class: class}
		f.lines[class] = l
	}
	*w = waiting[T]{value: v, line: l, before: f.last}
	if f.last != nil {
		f.last.after = w
	} else {
		f.first = w
	}
	f.last = w
	if l.last != nil {
		l.last.next = w
	} else {
		l.first = w
	}
	l.last = w
	f.n++
	f.resize(l, 1)
}

// pop takes the oldest value out; ok is false where there is none.
func (f *fair[T]) pop() (class uint32, v T, ok bool) {
	if f.first == nil {
		return 0, v, false
	}
	return f.take(f.first.line)
}

// shed takes the oldest value of a longest line out.
func (f *fair[T]) shed() (class uint32, v T, ok bool) {
	if f.first == nil {
		return 0, v, false
	}
	return f.take(f.byLength[len(f.byLength)-1])
}

// take takes a line's first value out. The oldest of all is the first of its line.
func (f *fair[T]) take(l *line[T]) (class uint32, v T, ok bool) {
	w := l.first
	if l.first = w.next; l.first == nil {
		l.last = nil
	}
	if w.before != nil {
		w.before.after = w.after
	} else {
		f.first = w.after
	}
	if w.after != nil {
		w.after.before = w.before
	} else {
		f.last = w.before
	}
	f.n--
	f.resize(l, -1)
	class, v = l.class, w.value
	*w = waiting[T]{after: f.spare}
	f.spare = w
	return class, v, true
}

// resize moves a line among those of its length by one.
func (f *fair[T]) resize(l *line[T], by int) {
	if l.n > 0 {
		if l.left != nil {
			l.left.right = l.right
		} else {
			f.byLength[l.n] = l.right
		}
		if l.right != nil {
			l.right.left = l.left
		}
		l.left, l.right = nil, nil
	}
	l.n += by
	if l.n == 0 {
		delete(f.lines, l.class)
	} else {
		for len(f.byLength) <= l.n {
			f.byLength = append(f.byLength, nil)
		}
		if l.right = f.byLength[l.n]; l.right != nil {
			l.right.left = l
		}
		f.byLength[l.n] = l
	}
	for n := len(f.byLength); n > 0 && f.byLength[n-1] == nil; n-- {
		f.byLength = f.byLength[:n-1]
	}
}
