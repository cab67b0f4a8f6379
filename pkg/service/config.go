package service

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"go.uber.org/zap"
)

// Field is one variable of a configuration struct. In addition to caarlos0/env's tags a field may carry
// range:"min..max" (numbers and durations, both ends included), oneof:"a b c", or secret:"true": its value may
// hold a secret, and NAME_FILE may name a file that holds the value.
type Field struct {
	Var, Default, Range string
	OneOf               []string
	Secret              bool
	Value               reflect.Value
	Struct              reflect.Type // that declares it
	Name                string       // of the field
}

// File is the name of the variable that may name a file with the value of a secret.
func (f Field) File() string { return f.Var + "_FILE" }

// Fields lists the variables of a configuration struct in the order they are declared.
func Fields(cfg any) []Field {
	var out []Field
	var walk func(v reflect.Value)
	walk = func(v reflect.Value) {
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if name, _, _ := strings.Cut(f.Tag.Get("env"), ","); name != "" {
				out = append(out, Field{
					Var: name, Default: f.Tag.Get("envDefault"), Range: f.Tag.Get("range"),
					OneOf: strings.Fields(f.Tag.Get("oneof")), Secret: f.Tag.Get("secret") == "true", Value: v.Field(i),
					Struct: v.Type(), Name: f.Name,
				})
			} else if f.Type.Kind() == reflect.Struct && f.IsExported() {
				walk(v.Field(i))
			}
		}
	}
	walk(reflect.Indirect(reflect.ValueOf(cfg)))
	return out
}

// Load fills cfg, a pointer to a struct with env tags, from environ ("NAME=value"). It returns all problems, one
// line each, which begins with the variable's name and says which values are allowed. A struct in cfg (or cfg
// itself) that has Validate() error is asked too, for rules between values.
func Load[C any](cfg *C, environ []string) []string {
	vars := env.ToMap(environ)
	fields := Fields(cfg)
	problems, bad := readSecrets(fields, vars)
	parseErr := env.ParseWithOptions(cfg, env.Options{Environment: vars, FuncMap: map[reflect.Type]env.ParserFunc{
		// 10s, 1m
		reflect.TypeFor[time.Duration](): func(s string) (any, error) {
			return time.ParseDuration(strings.TrimSpace(s))
		},
	}})
	for _, f := range fields {
		if p := f.problem(vars); p != "" && !bad[f.Var] {
			bad[f.Var] = true
			problems = append(problems, p)
		}
	}
	if parseErr != nil && len(problems) == 0 {
		return []string{parseErr.Error()}
	}
	for _, err := range validate(reflect.ValueOf(cfg)) {
		var name string
		for line := range strings.Lines(err.Error()) { // a wrapped list of problems repeats the name only once
			line = strings.TrimSpace(line)
			if n, _, ok := strings.Cut(line, ": "); ok && isVariable(n) {
				name = n
			} else if name != "" {
				line = name + ": " + line
			}
			if !mentions(line, bad) && !slices.Contains(problems, line) {
				problems = append(problems, line)
			}
		}
	}
	return problems
}

// maxSecret limits the file of a secret, in bytes.
const maxSecret = 64 << 10

// readSecrets puts the content of each NAME_FILE into vars under NAME. It returns the problems and the variables
// they are about. No problem quotes a value: the name of a file may be a secret in the wrong place.
func readSecrets(fields []Field, vars map[string]string) (problems []string, bad map[string]bool) {
	bad = map[string]bool{}
	for _, f := range fields {
		path := vars[f.File()]
		if !f.Secret || path == "" || bad[f.Var] {
			continue
		}
		text, err := readSecret(path)
		switch {
		case vars[f.Var] != "" && vars[f.Var] != text: // several parts of cfg may declare the same variable
			problems = append(problems, fmt.Sprintf("%s: it is set together with %s; give one of them", f.Var,
				f.File()))
		case err != nil:
			problems = append(problems, fmt.Sprintf("%s: %v; give a readable file that holds the value of %s", f.File(),
				err, f.Var))
		default:
			vars[f.Var] = text
			continue
		}
		bad[f.Var] = true
	}
	return problems, bad
}

// readSecret returns the content of a file without the line break at its end.
func readSecret(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", reason(err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxSecret+1))
	if err != nil {
		return "", reason(err)
	}
	value := strings.TrimRight(string(text), "\r\n")
	switch {
	case len(text) > maxSecret:
		return "", errors.New("the file is larger than 64 KiB")
	case value == "":
		return "", errors.New("the file is empty")
	}
	return value, nil
}

// reason returns an error of the file system without the file's name.
func reason(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("the file cannot be read: %w", e.Err)
	}
	return err
}

// mentions reports whether the line names one of the variables, also together with others: a
// consequence of a value that is wrong already is no news.
func mentions(line string, variables map[string]bool) bool {
	words := strings.FieldsFunc(line, func(r rune) bool {
		return r != '_' && !('A' <= r && r <= 'Z') && !('0' <= r && r <= '9')
	})
	return slices.ContainsFunc(words, func(w string) bool { return variables[w] })
}

// isVariable reports whether s is written as the name of a variable.
func isVariable(s string) bool {
	return s != "" && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
}

// CheckAddr reports an address, the value of a variable, that is not host:port with a port from 0 (any) to
// 65535.
func CheckAddr(variable, addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%s: %q is not host:port; give an address such as :9090 or 127.0.0.1:9090, "+
			"with a port from 0 (any) to 65535", variable, addr)
	}
	return nil
}

// problem returns the fault of the variable's value, apart from other variables; "" if it has none.
func (f Field) problem(vars map[string]string) string {
	raw := cmp.Or(vars[f.Var], f.Default)
	allowed := ""
	if f.Range != "" {
		low, high, _ := strings.Cut(f.Range, "..")
		allowed = " from " + low + " to " + high
	}
	switch v := f.Value.Interface().(type) {
	case time.Duration:
		d, err := time.ParseDuration(cmp.Or(raw, "0s"))
		if err != nil {
			return fmt.Sprintf("%s: %q is not a duration; give a number with a unit%s, such as 500ms, 5s or 2h", f.Var,
				raw, allowed)
		}
		if f.Range != "" && !inRange(f.Range, d, time.ParseDuration) {
			return fmt.Sprintf("%s: %s is out of range; give a duration%s", f.Var, raw, allowed)
		}
	case int, int64, float64:
		n, err := strconv.ParseFloat(cmp.Or(raw, "0"), 64)
		if _, isFloat := v.(float64); err == nil && !isFloat && n != float64(int64(n)) || !isFloat &&
			strings.ContainsAny(raw, ".eE") {
			err = errors.New("not whole")
		}
		if err != nil {
			return fmt.Sprintf("%s: %q is not a number; give one%s", f.Var, raw, allowed)
		}
		if f.Range != "" && !inRange(f.Range, n, func(s string) (float64, error) { return strconv.ParseFloat(s, 64) }) {
			return fmt.Sprintf("%s: %s is out of range; give a number%s", f.Var, raw, allowed)
		}
		if len(f.OneOf) > 0 && !slices.Contains(f.OneOf, raw) {
			return fmt.Sprintf("%s: %s is out of range; give one of %s", f.Var, raw, strings.Join(f.OneOf, ", "))
		}
	case bool:
		if _, err := strconv.ParseBool(cmp.Or(raw, "false")); err != nil {
			return fmt.Sprintf("%s: %q is neither true nor false", f.Var, raw)
		}
	case []time.Duration:
		for s := range strings.SplitSeq(raw, ",") {
			d, err := time.ParseDuration(strings.TrimSpace(s))
			if err != nil {
				return fmt.Sprintf("%s: %q is not a duration; give numbers with units%s, "+
					"separated by commas, such as 10s,1m,5m", f.Var, s, allowed)
			}
			if f.Range != "" && !inRange(f.Range, d, time.ParseDuration) {
				return fmt.Sprintf("%s: %s is out of range; give durations%s", f.Var, s, allowed)
			}
		}
	case string:
		if len(f.OneOf) > 0 && !slices.Contains(f.OneOf, raw) {
			return fmt.Sprintf("%s: %q is unknown; give one of %s", f.Var, raw, strings.Join(f.OneOf, ", "))
		}
	}
	return ""
}

func inRange[T cmp.Ordered](span string, v T, parse func(string) (T, error)) bool {
	low, high, _ := strings.Cut(span, "..")
	lo, err := parse(low)
	hi, err2 := parse(high)
	if err = errors.Join(err, err2); err != nil {
		panic("range tag " + span + ": " + err.Error()) // a bug in a Config struct, met by every test
	}
	return lo <= v && v <= hi
}

// validate asks every struct in v that has Validate, innermost last, and splits joined errors.
func validate(v reflect.Value) []error {
	var errs []error
	if x, ok := reflect.TypeAssert[interface{ Validate() error }](v); ok {
		errs = append(errs, split(x.Validate())...)
	}
	v = reflect.Indirect(v)
	for i := range v.NumField() {
		if f := v.Type().Field(i); f.Type.Kind() == reflect.Struct && f.IsExported() && v.Field(i).CanAddr() {
			errs = append(errs, validate(v.Field(i).Addr())...)
		}
	}
	return errs
}

func split(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range joined.Unwrap() {
			out = append(out, split(e)...)
		}
		return out
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// warnUnknown logs variables that are not read by cfg but are nearly named like one that is. (A variable
// of another service is no mistake: services often share an environment.)
func warnUnknown(log *zap.Logger, cfg any, environ []string) {
	fields := Fields(cfg)
	read := map[string]bool{}
	for _, f := range fields {
		read[f.Var] = true
		if f.Secret {
			read[f.File()] = true
		}
	}
	for name := range env.ToMap(environ) {
		if read[name] {
			continue
		}
		for _, f := range fields {
			if strings.Contains(f.Var, "_") && distance(name, f.Var) <= 2 {
				log.Warn("unknown variable ignored; is it misspelt?", zap.String("variable", name),
					zap.String("meant", f.Var))
				break
			}
		}
	}
}

// distance is how many letters must be changed, added or dropped to make a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
