"""What both packages speak: SSE, HTTP headers, one event in a stream. Pure."""
