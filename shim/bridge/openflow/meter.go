package openflow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Meter is a limit on packets: what exceeds it is dropped (by MeterBy) or not
// copied (by Controller).
type Meter struct {
	ID    uint32
	Rate  uint32 // packets a second
	Burst uint32 // packets that may come at once; 0: what the switch takes for one
}

// String is the meter in the text form of ovs-ofctl add-meter.
func (m Meter) String() string {
	s := fmt.Sprintf("meter=%d,pktps", m.ID)
	if m.Burst != 0 {
		s += ",burst"
	}
	s += fmt.Sprintf(",stats,bands=type=drop,rate=%d", m.Rate)
	if m.Burst != 0 {
		s += fmt.Sprintf(",burst_size=%d", m.Burst)
	}
	return s
}

// Commands and flags of a meter modification.
const (
	meterAdd     = 0
	meterModify  = 1
	meterDelete  = 2
	meterPackets = 1 << 1
	meterBurst   = 1 << 2
	meterStats   = 1 << 3
	meterAll     = 0xffffffff
	bandDrop     = 1
)

// AppendMeterPut writes the message that adds a meter, or changes the one that
// there is with its id.
func AppendMeterPut(b []byte, xid uint32, m Meter, exists bool) []byte {
	command := uint16(meterAdd)
	if exists {
		command = meterModify
	}
	flags := uint16(meterPackets | meterStats)
	if m.Burst != 0 {
		flags |= meterBurst
	}
	start := len(b)
	b = appendHeader(b, typeMeterMod, xid)
	b = binary.BigEndian.AppendUint16(b, command)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, m.ID)
	b = append(b, 0, bandDrop, 0, 16)
	b = binary.BigEndian.AppendUint32(b, m.Rate)
	b = binary.BigEndian.AppendUint32(b, m.Burst)
	b = append(b, 0, 0, 0, 0)
	return finish(b, start)
}

// AppendMeterDelete writes the message that removes a meter, with every flow
// that refers to it.
func AppendMeterDelete(b []byte, xid uint32, id uint32) []byte {
	start := len(b)
	b = appendHeader(b, typeMeterMod, xid)
	b = binary.BigEndian.AppendUint16(b, meterDelete)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint32(b, id)
	return finish(b, start)
}

// AppendMeterConfigRequest writes the request for all meters.
func AppendMeterConfigRequest(b []byte, xid uint32) []byte {
	return appendMeterRequest(b, xid, multipartMeterConfig)
}

// AppendMeterStatsRequest writes the request for all meters' counters.
func AppendMeterStatsRequest(b []byte, xid uint32) []byte {
	return appendMeterRequest(b, xid, multipartMeter)
}

func appendMeterRequest(b []byte, xid uint32, t MultipartType) []byte {
	start := len(b)
	b = appendMultipart(b, xid, t)
	b = binary.BigEndian.AppendUint32(b, meterAll)
	b = append(b, 0, 0, 0, 0)
	return finish(b, start)
}

// AppendMeterLimitsRequest writes the request for what meters the switch can have.
func AppendMeterLimitsRequest(b []byte, xid uint32) []byte {
	start := len(b)
	return finish(appendMultipart(b, xid, multipartMeterLimits), start)
}

// DecodeMeterLimits reads the highest id that a meter may have; zero where the
// switch has none.
func DecodeMeterLimits(body []byte) (uint32, error) {
	if len(body) < 16 {
		return 0, errors.New("meter features: cut short")
	}
	return binary.BigEndian.Uint32(body), nil
}

// DecodeMeterConfig reads the meters of one part of the reply. A meter of
// another kind than ours (bytes, several bands) is read with Rate 0, so that it
// never equals one of ours.
func DecodeMeterConfig(body []byte) ([]Meter, error) {
	var out []Meter
	for s := string(body); s != ""; {
		if len(s) < 8 {
			return nil, errors.New("meter: cut short")
		}
		length, flags := int(be16(s)), be16(s[2:])
		if length < 8 || length > len(s) {
			return nil, fmt.Errorf("meter: length %d of %d", length, len(s))
		}
		m := Meter{ID: be32(s[4:])}
		bands := s[8:length]
		if len(bands) == 16 && be16(bands) == bandDrop && flags&meterPackets != 0 {
			m.Rate = be32(bands[4:])
			if flags&meterBurst != 0 {
				m.Burst = be32(bands[8:])
			}
		}
		out = append(out, m)
		s = s[length:]
	}
	return out, nil
}

// MeterStats are the counters of one meter.
type MeterStats struct {
	ID      uint32
	Packets uint64        // that the meter saw
	Dropped uint64        // of these, beyond the limit
	Age     time.Duration // since it was put
}

// DecodeMeterStats reads the counters of one part of the reply.
func DecodeMeterStats(body []byte) ([]MeterStats, error) {
	var out []MeterStats
	for s := string(body); s != ""; {
		if len(s) < 40 {
			return nil, errors.New("meter stats: cut short")
		}
		length := int(be16(s[4:]))
		if length < 40 || length > len(s) {
			return nil, fmt.Errorf("meter stats: length %d of %d", length, len(s))
		}
		m := MeterStats{ID: be32(s), Packets: be64(s[16:]), Age: time.Duration(be32(s[32:]))*time.Second + time.Duration(be32(s[36:]))}
		for bands := s[40:length]; len(bands) >= 16; bands = bands[16:] {
			m.Dropped += be64(bands)
		}
		out = append(out, m)
		s = s[length:]
	}
	return out, nil
}
