"""The formats that both packages speak: server-sent events, HTTP heads. Pure."""
