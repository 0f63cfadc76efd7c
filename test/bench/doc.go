// Package bench measures what people wait for, on a real daemon with the real clients, and prints it beside the
// budget of each row and, where a dockerd runs on the machine, beside the same row on that. `make bench` runs it.
//
// Figures depend on the machine, so nothing here is asserted: the table is for reading.
package bench
