"""The commands: one public function each, the same from the command line and from Python."""
