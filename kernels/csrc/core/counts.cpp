namespace dp4tl {}
