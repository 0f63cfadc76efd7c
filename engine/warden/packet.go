package warden

// An attachment is a pair of connected SOCK_SEQPACKET sockets. Every packet begins with one of these bytes.
const (
	PacketStdin      byte = 0 // to the warden: input
	PacketStdout     byte = 1 // from the warden: output
	PacketStderr     byte = 2 // from the warden: output of the second stream; a terminal has only the first
	PacketEnd        byte = 3 // from the warden: the process ended and this was all
	PacketCloseStdin byte = 4 // to the warden: no more input
)

// MaxPacket is the most data that one packet carries after its first byte.
const MaxPacket = 64 << 10
