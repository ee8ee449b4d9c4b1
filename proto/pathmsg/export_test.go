package pathmsg

// Parse decodes the body of a message.
func Parse(kind byte, body []byte) (Message, error) { return parse(kind, body) }
