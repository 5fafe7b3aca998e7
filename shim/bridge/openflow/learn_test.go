package openflow

import "testing"

func TestLearnText(t *testing.T) {
	want := "learn(table=9,idle_timeout=10800,hard_timeout=3,priority=7,cookie=0x5745,limit=4,eth_type=0x86dd,ipv6_src[],nw_proto=6,tcp_dst[]," +
		"reg2[8..23]=reg1[0..15],reg0[0..2]=0x5,load:xxreg2[]->xxreg2[],load:0x1->reg0[20])"
	if got := learn().String(); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

func TestLearnRefuses(t *testing.T) {
	for name, a := range map[string]Learn{
		"no table":        {Table: AllTables},
		"ranges differ":   {Specs: []LearnSpec{{From: RegBits(0, 0, 8), To: RegBits(1, 0, 9)}}},
		"value too large": {Specs: []LearnSpec{LearnMatchValue(FieldIPProto, Uint(256))}},
		"no bits":         {Specs: []LearnSpec{{}}},
		"beyond a field":  {Specs: []LearnSpec{LearnLoadValue(Uint(1), RegBits(0, 30, 3))}},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("it was written")
				}
			}()
			NewActions(a)
		})
	}
	specs := make([]LearnSpec, 5000)
	for i := range specs {
		specs[i] = LearnMatch(FieldIPv4Src)
	}
	f := Flow{Match: NewMatch(IPv4()), Actions: NewActions(Learn{Specs: specs})}
	if f.Fits() {
		t.Errorf("a flow that learns from %d fields fits into a message", len(specs))
	}
	_ = f.String()
}

// What another wrote in a learn action that we would not write so is kept as it
// is, and equals nothing of ours.
func TestForeignLearnIsKept(t *testing.T) {
	ours := string(learn().append(nil))
	for name, at := range map[string]int{"flags": 25, "pad": 27, "time after the end": 29, "no destination": 40} {
		b := []byte(ours)
		b[at] ^= 0x10
		steps, err := decodeSteps(string(b), 0)
		if err != nil || len(steps) != 1 || steps[0] != Foreign(b) {
			t.Errorf("%s: %v, %v", name, steps, err)
		}
	}
}
