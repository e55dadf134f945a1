"""``python -m alkd_ray`` is ``alkd``."""

from alkd_ray.cli.main import main

main()
