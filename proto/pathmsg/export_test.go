package pathmsg

// MaxIdle is how many boxes are kept although they are not in use.
const MaxIdle = maxIdle

// Parse decodes the body of a message.
func Parse(kind byte, body []byte) (Message, error) { return parse(kind, body) }
