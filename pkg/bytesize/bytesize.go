// Package bytesize shows numbers of bytes to people, in units of 1024.
package bytesize

import "fmt"

// Of returns n in the largest unit from B to PiB that it reaches.
func Of(n uint64) (value float64, unit string) {
	value, unit = float64(n), "B"
	for _, next := range []string{"KiB", "MiB", "GiB", "TiB", "PiB"} {
		if value < 1024 {
			break
		}
		value, unit = value/1024, next
	}
	return value, unit
}

// Text returns n as text: "1023 B", "1.5 KiB".
func Text(n uint64) string {
	value, unit := Of(n)
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}
