"""DomainBed's datasets, in its folder layouts, domain order and splits."""
