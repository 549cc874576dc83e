"""What goes on below some folders, at a glance: a page of our own, and the tools that show the rest."""
