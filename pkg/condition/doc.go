// Package condition decides which events a webhook wants, beyond their names.
//
// A condition is a path, an operator and a value; all conditions of a webhook must hold. A path names a member of
// the event's body, such as document.deal_stage.id or document.tags.0: its segments are literal and stand between
// dots, \. is a dot in a name, \\ a backslash, and a number counts the elements of an array from 0. A name that stands
// twice in an object means its first member, as package event reads it. $changed is the paths below document that
// the change touched, and $origin who caused it, as the CRM's headers say.
//
// Comparisons are exact. Numbers compare as numbers, of any size and notation; strings compare by their bytes
// after unescaping; values of different kinds are never equal, and neither is greater. null is a value. A member that
// is not there satisfies only exists false, ne and not_in.
//
// Conditions are compiled once ([Compile]). An [Event] looks each path up once, however many webhooks use it.
package condition
